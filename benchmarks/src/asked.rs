//! What the benchmarks of a GPU were asked for: `[small] [--json FILE] [--ceilings FILE] [--cubins FOLDER] [WORD…]`. Cargo adds
//! `--bench`, which says nothing.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use kernels::Error;
use kernels::cuda::RELEASED;
use kernels::cuda::cache;
use kernels::cuda::cubin::Label;
use kernels::cuda::gpu::{Gpu, Options};
use kernels::cuda::nvrtc::Nvrtc;
use kernels::cuda::sources::NAIVE;
use serde_json::Value;

/// The arguments.
#[derive(Debug, Default)]
pub struct Asked {
    /// Shapes for the emulator, where times mean nothing.
    pub small: bool,
    /// What else, in words that the benchmark knows.
    pub words: Vec<String>,
    /// Lines of gemm.py: see [`crate::ceiling`].
    pub ceilings: Option<PathBuf>,
    json: Option<PathBuf>,
    /// Measures nothing: compiles the naive versions for every architecture of a release into this cache, for a machine without a
    /// compiler.
    cubins: Option<PathBuf>,
}

impl Asked {
    /// Those of this process; `known` are the words of the benchmark.
    ///
    /// # Errors
    /// On others than there are, with those that there are.
    pub fn of_process(known: &[&str]) -> Result<Asked, String> {
        let mut asked = Asked::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "small" => asked.small = true,
                "--json" => asked.json = Some(arguments.next().ok_or("--json needs a file")?.into()),
                "--ceilings" => asked.ceilings = Some(arguments.next().ok_or("--ceilings needs a file")?.into()),
                "--cubins" => asked.cubins = Some(arguments.next().ok_or("--cubins needs a folder")?.into()),
                "--bench" => {}
                word if known.contains(&word) => asked.words.push(argument),
                other => {
                    let options = "[small] [--json FILE] [--ceilings FILE] [--cubins FOLDER]";
                    return Err(format!("{other} is not known: {options} {}", known.join(" ")));
                }
            }
        }
        Ok(asked)
    }

    /// Those of `words` that were asked for, or all of them where none was.
    pub fn among<'a>(&self, words: &[&'a str]) -> Vec<&'a str> {
        let asked: Vec<&str> = words.iter().copied().filter(|word| self.words.iter().any(|own| own == word)).collect();
        if asked.is_empty() { words.to_vec() } else { asked }
    }

    /// The first GPU. Without one that kernels run on: none, said in one line, since `cargo bench` is no failure there; with
    /// SAE_REQUIRE_ALL it is one.
    ///
    /// # Errors
    /// What keeps a GPU that is there from being used.
    pub fn gpu(&self) -> Result<Option<Gpu>, String> {
        match Gpu::open(0, Options::from_environment()) {
            Ok(gpu) => Ok(Some(gpu)),
            Err(
                error @ (Error::NoDriver { .. } | Error::NoGpu | Error::GpuTooOld { .. } | Error::DriverTooOld { .. }),
            ) if std::env::var_os("SAE_REQUIRE_ALL").is_none() => {
                println!("nothing measured: {error}");
                Ok(None)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Where results go besides standard output.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn lines(&self) -> Result<Lines, String> {
        let make = |path: &PathBuf| File::create(path).map_err(|error| format!("{}: {error}", path.display()));
        Ok(Lines(self.json.as_ref().map(make).transpose()?))
    }
}

/// A file of one JSON object a line, for programs that compare.
#[derive(Debug)]
pub struct Lines(Option<File>);

impl Lines {
    /// Adds a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, line: &Value) -> Result<(), String> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        writeln!(file, "{line}").map_err(|error| format!("the file of --json: {error}"))
    }
}

fn compile(folder: &Path) -> Result<(), String> {
    let nvrtc = Nvrtc::find(None).map_err(|error| error.to_string())?;
    for (source, arch) in NAIVE.iter().flat_map(|source| RELEASED.map(|arch| (source, arch))) {
        let image = nvrtc.compile(source, arch).map_err(|error| error.to_string())?.image;
        let label = Label::new(source, arch, nvrtc.version());
        let written = cache::write(folder, &label.file_name(), &label, &image);
        written.map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    Ok(())
}

/// Runs a benchmark that knows some words; 0, or 1 and what went wrong.
pub fn main(known: &[&str], benchmark: impl FnOnce(&Asked, &Gpu) -> Result<(), String>) -> std::process::ExitCode {
    let run = || {
        let asked = Asked::of_process(known)?;
        match &asked.cubins {
            Some(folder) => compile(folder),
            None => asked.gpu()?.map_or(Ok(()), |gpu| benchmark(&asked, &gpu)),
        }
    };
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            std::process::ExitCode::FAILURE
        }
    }
}
