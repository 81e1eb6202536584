use super::*;

/// Every program, with everything that can be asked of it, passes the verifier of the running kernel.
#[test]
fn the_verifier_takes_every_program() {
    let types = match tracing::kernel_types() {
        Ok(types) => types,
        Err(e) => {
            eprintln!("SKIPPED: the kernel's types cannot be read: {e}");
            return;
        }
    };
    let btf = Btf::parse(&types).unwrap();
    let kernel = Kernel::new(&btf).unwrap();
    let (level, program) = survey(&kernel).unwrap();
    assert!(program > u64::from(u32::MAX), "{program:#x} is no address of the kernel");
    let maps = Maps {
        containers: tracing::create_map(MapKind::Hash, 8, 4, 16).unwrap(),
        ring: tracing::create_map(MapKind::RingBuffer, 0, 0, 1 << 16).unwrap(),
        dropped: tracing::create_map(MapKind::Array, 4, 8, 1).unwrap(),
        syscalls: tracing::create_map(MapKind::Array, 4, ENTRY as u32, SYSCALLS).unwrap(),
    };
    let all = Needs { starts: true, parent: true, ancestor: true, credentials: true, name: true, cwd: true };
    for needs in [Needs::default(), all] {
        for (level, v2) in [(level, false), (level + 1, true)] {
            let scope = Scope { level, program, v2 };
            for probe in [
                Probe::Clone,
                Probe::Exec { stdio: false },
                Probe::Exec { stdio: true },
                Probe::Exit,
                Probe::Enter,
                Probe::Leave,
            ] {
                assemble(probe, &btf, &kernel, &maps, scope, needs)
                    .unwrap_or_else(|e| panic!("{probe:?} {needs:?} {scope:?}: {e}"));
            }
        }
    }
}
