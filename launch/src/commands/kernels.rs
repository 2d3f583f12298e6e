//! `sae kernels`.

use kernels::cuda::cache;
use kernels::cuda::cubin::Label;
use kernels::cuda::embedded;
use kernels::cuda::nvrtc::{Nvrtc, OLDEST};
use kernels::cuda::sources::SOURCES;

use crate::args::Kernels;
use crate::failure::Failure;
use crate::table;

/// Compiles every source for every architecture, or says for which the binary has them.
pub fn run(args: &Kernels) -> Result<(), Failure> {
    if args.carried {
        let archs = embedded::archs();
        table::say(match archs.as_slice() {
            [] => "no compiled kernels: they are compiled when a GPU is first used, by NVRTC".to_owned(),
            _ => format!("{} sources of kernels, compiled for {}", SOURCES.len(), archs.join(", ")),
        });
        return Ok(());
    }
    let nvrtc = Nvrtc::find(None)?;
    let mut rows = Vec::new();
    let mut spilling = Vec::new();
    for source in SOURCES {
        for &arch in &args.arch {
            let compiled = nvrtc.compile(source, arch)?;
            for kernel in &compiled.resources {
                if kernel.spill_store_bytes + kernel.spill_load_bytes > 0 {
                    spilling.push(format!("{} for {arch}", kernel.kernel));
                }
                rows.push([
                    source.file.to_owned(),
                    kernel.kernel.clone(),
                    arch.to_string(),
                    kernel.threads.to_string(),
                    kernel.registers.to_string(),
                    kernel.shared_bytes.to_string(),
                    kernel.local_bytes.to_string(),
                    format!("{}/{}", kernel.spill_store_bytes, kernel.spill_load_bytes),
                ]);
            }
            if let Some(out) = &args.out {
                // A name without hash: what is compiled again takes the place of what was there.
                let name = format!("{}-{arch}.cubin", source.name());
                cache::write(out, &name, &Label::new(source, arch, nvrtc.version()), &compiled.image).map_err(
                    |error| Failure::cannot_write(format!("{}: cannot write: {error}", out.join(&name).display())),
                )?;
            }
        }
    }
    let titles = ["file", "kernel", "arch", "threads", "registers", "shared", "local", "spills"];
    table::columns(&titles, &rows);
    table::say(format!(
        "compiled with NVRTC {}; shared, local and spills in bytes, spills stored/loaded",
        nvrtc.version()
    ));
    if !spilling.is_empty() {
        tracing::warn!("registers spill to memory, which is slow: {}", spilling.join(", "));
    }
    if let Some(out) = &args.out {
        if nvrtc.version() > OLDEST {
            tracing::warn!(
                "NVRTC {} is newer than {OLDEST}: drivers of CUDA {OLDEST} need not take its kernels",
                nvrtc.version()
            );
        }
        let whole = std::path::absolute(out).unwrap_or_else(|_| out.clone());
        table::say(format!("next: SAE_CUBINS={} cargo build --release", whole.display()));
    }
    Ok(())
}
