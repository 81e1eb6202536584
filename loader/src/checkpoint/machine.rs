//! Kernel and CPU that an image was made on, and whether this machine can go on from there.
#![forbid(unsafe_code)]

use super::image::Digest;
use super::state::{Machine, SandboxState};
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use object::read::elf::{ElfFile64, FileHeader};
use object::{Object, ObjectSymbol};

/// Flags of `/proc/cpuinfo` (x86) that stand for instructions which programs look for once, at their start, and use from
/// then on. The others are the kernel's.
const INSTRUCTIONS: &[&str] = &[
    "adx",
    "aes",
    "amx_bf16",
    "amx_int8",
    "amx_tile",
    "avx",
    "avx2",
    "avx512_4fmaps",
    "avx512_4vnniw",
    "avx512_bf16",
    "avx512_bitalg",
    "avx512_fp16",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_vp2intersect",
    "avx512_vpopcntdq",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512er",
    "avx512f",
    "avx512ifma",
    "avx512pf",
    "avx512vbmi",
    "avx512vl",
    "avx_vnni",
    "bmi1",
    "bmi2",
    "cldemote",
    "clflushopt",
    "clwb",
    "clzero",
    "cx16",
    "cx8",
    "f16c",
    "fma",
    "fma4",
    "fsgsbase",
    "fxsr",
    "gfni",
    "lahf_lm",
    "lzcnt",
    "abm",
    "misalignsse",
    "mmx",
    "movbe",
    "movdir64b",
    "movdiri",
    "pclmulqdq",
    "popcnt",
    "pku",
    "ospke",
    "rdpid",
    "rdrand",
    "rdseed",
    "rdtscp",
    "rtm",
    "serialize",
    "sha_ni",
    "sse",
    "sse2",
    "sse4_1",
    "sse4_2",
    "sse4a",
    "ssse3",
    "pni",
    "tbm",
    "tsxldtrk",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "wbnoinvd",
    "xop",
    "xsave",
    "xsavec",
    "xsaveopt",
];

/// This machine. What only a program of the container shows — XSTATE, vdso — is left to be filled in.
///
/// # Errors
/// When `/proc` does not tell.
pub fn describe(procfs: &ProcFs) -> Result<Machine> {
    let cpuinfo = procfs.read_path("cpuinfo")?;
    let names = nix::sys::utsname::uname()?;
    Ok(Machine {
        kernel: names.release().to_string_lossy().into_owned(),
        arch: names.machine().to_string_lossy().into_owned(),
        cpu_features: features(&cpuinfo),
        page_size: 4096,
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        ..Machine::default()
    })
}

fn features(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find(|l| l.starts_with("flags") || l.starts_with("Features"));
    let flags = line.and_then(|l| l.split_once(':')).map_or("", |(_, flags)| flags);
    let mut found: Vec<String> =
        flags.split_ascii_whitespace().filter(|f| INSTRUCTIONS.contains(f)).map(str::to_owned).collect();
    found.sort_unstable();
    found
}

/// XCR0 as the kernel notes it in a thread's XSTATE, and the size of that.
pub fn xstate_facts(xstate: &[u8]) -> (u64, u64) {
    // The software-reserved bytes of the legacy area begin with the features that user space has.
    let xcr0 = xstate.get(464..472).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    (xcr0, xstate.len() as u64)
}

/// What programs know of a vdso: its size and where its functions are.
pub fn vdso_digest(image: &[u8]) -> String {
    let mut text = format!("{}", image.len());
    if let Ok(elf) = ElfFile64::<object::Endianness>::parse(image) {
        let mut symbols: Vec<(String, u64)> =
            elf.dynamic_symbols().filter_map(|s| Some((s.name().ok()?.to_owned(), s.address()))).collect();
        symbols.sort();
        for (name, address) in symbols {
            text += &format!(" {name}={address:x}");
        }
        text += &format!(" {:?}", elf.elf_header().e_ident().class);
    }
    Digest::of(text.as_bytes()).to_string()
}

/// Whether programs of the image can run on `here`. Answers what will be different and does no harm.
///
/// # Errors
/// Names everything that is missing.
pub fn check(image: &SandboxState, here: &Machine) -> Result<Vec<String>> {
    let saved = &image.machine;
    let mut wrong = Vec::new();
    if saved.arch != here.arch {
        wrong.push(format!("it was made on {}, and this machine is {}", saved.arch, here.arch));
    }
    if saved.page_size != here.page_size {
        wrong.push(format!(
            "its pages are of {} bytes, this machine's of {}",
            saved.page_size, here.page_size
        ));
    }
    let missing: Vec<&str> =
        saved.cpu_features.iter().filter(|f| !here.cpu_features.contains(f)).map(String::as_str).collect();
    if !missing.is_empty() {
        wrong
            .push(format!("its programs may use instructions that this CPU has not: {}", missing.join(", ")));
    }
    if !wrong.is_empty() {
        return Err(Error::unsupported(format!("the image cannot run here: {}", wrong.join("; "))));
    }
    let mut notes = Vec::new();
    if saved.kernel != here.kernel {
        notes.push(format!("the image was made on Linux {}, this is {}", saved.kernel, here.kernel));
    }
    if here.cpus < saved.cpus {
        notes.push(format!("the image was made with {} CPUs, here are {}", saved.cpus, here.cpus));
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_programs_can_use_counts() {
        let text = "processor\t: 0\nflags\t\t: fpu sse2 ibpb avx2 constant_tsc\nbugs\t\t: spectre\n";
        assert_eq!(features(text), ["avx2", "sse2"]);
    }

    #[test]
    fn missing_instructions_are_named() {
        let machine = |features: &[&str]| Machine {
            arch: "x86_64".to_owned(),
            page_size: 4096,
            cpu_features: features.iter().map(|f| (*f).to_owned()).collect(),
            ..Machine::default()
        };
        let image =
            SandboxState { machine: machine(&["avx2", "avx512f", "sse2"]), ..SandboxState::default() };
        let error = check(&image, &machine(&["sse2"])).unwrap_err();
        assert!(error.message.contains("avx2, avx512f"), "{error}");
        assert_eq!(
            check(&image, &machine(&["avx2", "avx512f", "sha_ni", "sse2"])).unwrap(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn the_vdso_of_this_process_has_functions() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let Some(line) = maps.lines().find(|l| l.ends_with("[vdso]")) else { return };
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let mut image = vec![0; (end - start) as usize];
        use std::os::unix::fs::FileExt;
        std::fs::File::open("/proc/self/mem").unwrap().read_exact_at(&mut image, start).unwrap();
        assert_eq!(vdso_digest(&image), vdso_digest(&image));
        assert_ne!(vdso_digest(&image), vdso_digest(&image[..4096]));
    }
}
