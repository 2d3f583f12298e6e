//! NVRTC, NVIDIA's compiler as a library: finding it, and compiling device sources to cubins.
//!
//! Its functions are looked up here and not through cudarc, which asks the loader for plain `libnvrtc.so` first: a CUDA 12
//! toolkit on the search path would win over the library that was found. Also, cudarc knows the functions' status as
//! an enum, which a code of a newer NVRTC would not fit.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_void};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use super::arch::Arch;
use super::resources::{self, Resources};
use super::sources::{FLAGS, HEADERS, KernelSource};
use crate::Error;

/// The oldest version whose cubins and flags are known to be right, and that of the oldest driver.
pub const OLDEST: Version = Version { major: 13, minor: 0 };

/// File names, best first. The second one is any version, so it is checked.
const NAMES: [&str; 2] = ["libnvrtc.so.13", "libnvrtc.so"];

/// What it loads by its plain name when it first compiles, and finds only beside itself if it is there already.
const BUILTINS: &str = "libnvrtc-builtins.so";

/// The environment variable that names its folder.
const FOLDER: &str = "SAE_NVRTC";

/// A version of NVRTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Of CUDA.
    pub major: u32,
    /// Its second part.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A compiled source.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// An ELF file for the driver.
    pub image: Vec<u8>,
    /// Warnings, and what the assembler says of each kernel.
    pub log: String,
    /// What each kernel takes, sorted by name.
    pub resources: Vec<Resources>,
}

/// A program, as NVRTC names it.
type Program = *mut c_void;
/// 0 is success.
type Status = c_int;

/// A pair of functions that give the size of something and the thing.
#[derive(Clone, Copy, Debug)]
struct Output {
    size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    get: unsafe extern "C" fn(Program, *mut c_char) -> Status,
}

/// The compiler, loaded. Several threads may compile at once.
#[derive(Clone, Copy, Debug)]
pub struct Nvrtc {
    version: Version,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    arch_count: unsafe extern "C" fn(*mut c_int) -> Status,
    archs: unsafe extern "C" fn(*mut c_int) -> Status,
    log: Output,
    cubin: Output,
    ptx: Output,
}

impl Nvrtc {
    /// Loads it from `folder`; without one from the folder that `SAE_NVRTC` names; without that from the loader's search
    /// path, the usual folders of CUDA toolkits, or the Python or Conda environment that is active (PyTorch brings
    /// it along). It stays loaded.
    ///
    /// # Errors
    /// [`Error::NoCompiler`] says where it was looked for and what was wrong there.
    pub fn find(folder: Option<&Path>) -> Result<Nvrtc, Error> {
        let named = folder.map(Path::to_owned).or_else(|| std::env::var_os(FOLDER).map(PathBuf::from));
        let places = match named {
            Some(folder) => vec![Some(folder)],
            None => [None].into_iter().chain(usual_folders().into_iter().map(Some)).collect(),
        };
        let mut looked = Vec::new();
        for place in places {
            match load_from(place.as_deref()) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(reason) => looked.push(reason),
            }
        }
        Err(Error::NoCompiler { looked: looked.join("; ") })
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Compiles a source with its headers and [`FLAGS`].
    ///
    /// # Errors
    /// [`Error::UnknownArch`] when this version does not know the architecture, [`Error::Compile`] with the log.
    ///
    /// # Panics
    /// When a source holds a NUL character.
    pub fn compile(&self, source: &KernelSource, arch: Arch) -> Result<Compiled, Error> {
        self.knows(arch)?;
        let program = OpenProgram::new(self, source).map_err(|log| self.failed(source, arch, log))?;
        let image = program.compile(arch).map_err(|log| self.failed(source, arch, log))?;
        let log = program.text(self.log);
        let resources = resources::parse(&log, &program.text(self.ptx));
        Ok(Compiled { image, log, resources })
    }

    fn failed(&self, source: &KernelSource, arch: Arch, log: String) -> Error {
        Error::Compile { source_file: source.file, arch: arch.to_string(), nvrtc: self.version.to_string(), log }
    }

    fn knows(&self, arch: Arch) -> Result<(), Error> {
        let mut count: c_int = 0;
        // SAFETY: the function writes one number to the address that it gets.
        unsafe { (self.arch_count)(&mut count) };
        let mut numbers = vec![0 as c_int; usize::try_from(count).unwrap_or(0)];
        // SAFETY: it writes as many numbers as it just said, and there is room for them.
        unsafe { (self.archs)(numbers.as_mut_ptr()) };
        if numbers.iter().any(|&number| u32::try_from(number) == Ok(arch.number())) {
            return Ok(());
        }
        let known: Vec<String> = numbers.iter().map(|number| format!("sm_{number}")).collect();
        let known = format!("NVRTC {} knows {}", self.version, known.join(", "));
        Err(Error::UnknownArch { arch: arch.to_string(), known })
    }

    fn reason(&self, status: Status) -> String {
        // SAFETY: it gives a static text for every number.
        unsafe { CStr::from_ptr((self.error_string)(status)) }.to_string_lossy().into_owned()
    }
}

/// A program that is destroyed at the end.
struct OpenProgram<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl<'a> OpenProgram<'a> {
    fn new(nvrtc: &'a Nvrtc, source: &KernelSource) -> Result<Self, String> {
        let texts: Vec<CString> = HEADERS.iter().map(|header| text(header.text)).collect();
        let names: Vec<CString> = HEADERS.iter().map(|header| text(header.file)).collect();
        let (texts, names) = (pointers(&texts), pointers(&names));
        let mut program = ptr::null_mut();
        let (code, name) = (text(source.text), text(source.file));
        // SAFETY: texts end with NUL, both lists hold as many as is said, and all live until the call is over: NVRTC copies.
        let status = unsafe {
            (nvrtc.create)(
                &mut program,
                code.as_ptr(),
                name.as_ptr(),
                HEADERS.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        if status == 0 { Ok(OpenProgram { nvrtc, program }) } else { Err(nvrtc.reason(status)) }
    }

    /// The cubin, or what went wrong.
    fn compile(&self, arch: Arch) -> Result<Vec<u8>, String> {
        let arch = text(&format!("--gpu-architecture={arch}"));
        let flags: Vec<CString> = FLAGS.iter().map(|flag| text(flag)).chain([arch]).collect();
        let flags = pointers(&flags);
        // SAFETY: the program is open, and the flags are as many texts as is said, each with its NUL.
        let status = unsafe { (self.nvrtc.compile)(self.program, flags.len() as c_int, flags.as_ptr()) };
        if status != 0 {
            return Err(format!("{}\n{}", self.nvrtc.reason(status), self.text(self.nvrtc.log)));
        }
        let image = self.bytes(self.nvrtc.cubin)?;
        if image.starts_with(b"\x7fELF") { Ok(image) } else { Err("it gives no cubin".to_owned()) }
    }

    /// A text of it; empty when there is none.
    fn text(&self, output: Output) -> String {
        let bytes = self.bytes(output).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }

    fn bytes(&self, output: Output) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: the program is open, and the size has a place.
        let status = unsafe { (output.size)(self.program, &mut size) };
        if status != 0 {
            return Err(self.nvrtc.reason(status));
        }
        let mut bytes = vec![0_u8; size];
        // SAFETY: there is room for as many bytes as it just said.
        let status = unsafe { (output.get)(self.program, bytes.as_mut_ptr().cast()) };
        if status == 0 { Ok(bytes) } else { Err(self.nvrtc.reason(status)) }
    }
}

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: the program is open, and nobody uses it afterwards.
        unsafe { (self.nvrtc.destroy)(&mut self.program) };
    }
}

fn text(text: &str) -> CString {
    CString::new(text).expect("a source is text without NUL")
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}

/// Loads NVRTC from a folder, or from the loader's search path. Errors say where and why.
fn load_from(folder: Option<&Path>) -> Result<Nvrtc, String> {
    let place = folder.map_or("the loader's search path".to_owned(), |folder| folder.display().to_string());
    if let Some(folder) = folder {
        let names = fs::read_dir(folder).map_err(|error| format!("{place}: {error}"))?.flatten().map(|e| e.file_name());
        let builtins = names.filter(|name| name.to_string_lossy().starts_with(BUILTINS));
        for name in builtins {
            // What cannot be opened is not needed, or NVRTC will say so.
            let _ = open(folder.join(name).as_os_str());
        }
    }
    let mut wrong = format!("{place}: no {}", NAMES[0]);
    for name in NAMES {
        let path = folder.map_or_else(|| OsString::from(name), |folder| folder.join(name).into_os_string());
        if folder.is_some() && !Path::new(&path).exists() {
            continue;
        }
        match open(&path).and_then(functions) {
            Ok(nvrtc) if nvrtc.version >= OLDEST => return Ok(nvrtc),
            Ok(nvrtc) => wrong = format!("{place}: {name} is version {}, and {OLDEST} is needed", nvrtc.version),
            Err(error) if folder.is_some() => wrong = format!("{place}: {name} cannot be loaded: {error}"),
            Err(_) => {}
        }
    }
    Err(wrong)
}

/// Opens a library for the rest of the process: unloading one that has threads or handlers of its own is not safe.
fn open(path: &OsStr) -> Result<&'static Library, libloading::Error> {
    // SAFETY: NVRTC and its builtins run only NVIDIA's initialisers, which ask nothing of the process.
    let library = unsafe { Library::new(path) }?;
    Ok(Box::leak(Box::new(library)))
}

fn functions(library: &'static Library) -> Result<Nvrtc, libloading::Error> {
    // SAFETY: each name has the type that nvrtc.h declares for it, the same since CUDA 11; the library is never unloaded.
    unsafe {
        let version_function =
            library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status>(b"nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        version_function(&mut major, &mut minor);
        Ok(Nvrtc {
            version: Version { major: major.try_into().unwrap_or(0), minor: minor.try_into().unwrap_or(0) },
            error_string: *library.get(b"nvrtcGetErrorString")?,
            create: *library.get(b"nvrtcCreateProgram")?,
            compile: *library.get(b"nvrtcCompileProgram")?,
            destroy: *library.get(b"nvrtcDestroyProgram")?,
            arch_count: *library.get(b"nvrtcGetNumSupportedArchs")?,
            archs: *library.get(b"nvrtcGetSupportedArchs")?,
            log: Output { size: *library.get(b"nvrtcGetProgramLogSize")?, get: *library.get(b"nvrtcGetProgramLog")? },
            cubin: Output { size: *library.get(b"nvrtcGetCUBINSize")?, get: *library.get(b"nvrtcGetCUBIN")? },
            ptx: Output { size: *library.get(b"nvrtcGetPTXSize")?, get: *library.get(b"nvrtcGetPTX")? },
        })
    }
}

/// Where toolkits and Python packages put it; only folders that exist.
pub(crate) fn usual_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for root in ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os).map(PathBuf::from) {
        folders.push(root.join("lib64"));
    }
    folders.extend(["/usr/local/cuda/lib64", "/usr/local/cuda-13/lib64", "/opt/cuda/lib64"].map(PathBuf::from));
    for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(std::env::var_os).map(PathBuf::from) {
        let lib = environment.join("lib");
        let pythons = fs::read_dir(&lib).into_iter().flatten().flatten().map(|entry| entry.path());
        let pythons =
            pythons.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python3")));
        folders.extend(pythons.map(|python| python.join("site-packages/nvidia/cu13/lib")));
        folders.push(lib);
    }
    folders.retain(|folder| folder.is_dir());
    folders
}
