//! What each kernel takes of a multiprocessor, read from what the compiler says.

/// One kernel, as compiled for one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Its entry point.
    pub kernel: String,
    /// Most threads in a block, from `__launch_bounds__`; 0 when it does not say.
    pub threads: u32,
    /// Blocks that must fit on a multiprocessor together, from `__launch_bounds__`; 0 when it does not say.
    pub blocks: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// Local memory of a thread: arrays that are no registers, spills, frames of functions that were not inlined.
    pub local_bytes: u32,
    /// Registers stored to local memory because there are too few.
    pub spill_store_bytes: u32,
    /// Registers loaded back.
    pub spill_load_bytes: u32,
}

/// From the log of `--ptxas-options=-v` and the PTX (which alone knows the launch bounds), sorted by name.
pub(crate) fn parse(log: &str, ptx: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.strip_prefix("ptxas info    : Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or(rest).to_owned();
            found.push(Resources { kernel, ..Resources::default() });
        }
        let Some(kernel) = found.last_mut().filter(|_| line.starts_with("ptxas ")) else { continue };
        for part in line.split([',', ':', '.']).map(str::trim) {
            let Some((number, what)) = part.trim_start_matches("Used ").split_once(' ') else { continue };
            let Ok(number) = number.parse::<u32>() else { continue };
            match what {
                "registers" => kernel.registers = number,
                "bytes smem" => kernel.shared_bytes = number,
                "bytes stack frame" | "bytes cumulative stack size" | "bytes lmem" => {
                    kernel.local_bytes = kernel.local_bytes.max(number);
                }
                // A function that was not inlined is listed after a kernel that calls it, with spills of its own.
                "bytes spill stores" => kernel.spill_store_bytes += number,
                "bytes spill loads" => kernel.spill_load_bytes += number,
                _ => {}
            }
        }
    }
    let mut entry: Option<&mut Resources> = None;
    for line in ptx.lines() {
        if let Some((_, rest)) = line.split_once(".entry ") {
            let name = rest.split('(').next().unwrap_or(rest).trim();
            entry = found.iter_mut().find(|resources| resources.kernel == name);
        }
        let Some(kernel) = &mut entry else { continue };
        if let Some(sizes) = line.strip_prefix(".maxntid ") {
            kernel.threads = sizes.split(',').filter_map(|size| size.trim().parse::<u32>().ok()).product();
        } else if let Some(blocks) = line.strip_prefix(".minnctapersm ") {
            kernel.blocks = blocks.trim().parse().unwrap_or(0);
        }
    }
    found.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read() {
        // As NVRTC 13.2 writes it.
        let log = "x.cu(6): warning #177-D: variable \"s\" was declared but never referenced\n\
ptxas info    : 0 bytes gmem\n\
ptxas info    : Compiling entry function 'spilly' for 'sm_75'\n\
ptxas info    : Function properties for spilly\n\
ptxas         .     696 bytes stack frame, 1396 bytes spill stores, 1400 bytes spill loads\n\
ptxas info    : Used 64 registers, used 0 barriers, 700 bytes cumulative stack size, 364 bytes cmem[0]\n\
ptxas info    : Compile time = 124.596 ms\n\
ptxas info    : Function properties for _Z2fnfi\n\
ptxas         .     56 bytes stack frame, 16 bytes spill stores, 16 bytes spill loads\n\
ptxas info    : Compiling entry function 'simple' for 'sm_75'\n\
ptxas info    : Function properties for simple\n\
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
ptxas info    : Used 14 registers, used 1 barriers, 256 bytes smem, 360 bytes cmem[0]\n";
        let ptx = ".visible .entry simple(\n.param .u64 x\n)\n.maxntid 32, 4, 1\n.minnctapersm 2\n{\n}\n.visible .entry spilly(";
        let simple = Resources {
            kernel: "simple".into(),
            threads: 128,
            blocks: 2,
            registers: 14,
            shared_bytes: 256,
            ..Resources::default()
        };
        let spilly = Resources {
            kernel: "spilly".into(),
            registers: 64,
            local_bytes: 700,
            spill_store_bytes: 1412,
            spill_load_bytes: 1416,
            ..Resources::default()
        };
        assert_eq!(parse(log, ptx), [simple, spilly]);
    }
}
