//! What the fuzz targets `boot` and `bundle` in `fuzz/` run, kept here so that `cargo test` compiles it and mutates some
//! inputs. Each function takes arbitrary bytes and must not panic, hang or leave a descriptor open.
use airlock::gofer::PodMountHints;
use airlock::podspec::{self, Bundle};
use airlock_loader::boot::FdTable;
use airlock_loader::loader::ContainerParts;
use airlock_loader::oci::{compat, validate};
use airlock_loader::seccomp;
use airlock_wire::api::boot::{BootArgs, ContainerFds, Fd};
use airlock_wire::api::types::{FdMapping, SpecJson};
use airlock_wire::codec;
use oci_spec::runtime::Spec;
use std::fs::File;
use std::os::fd::OwnedFd;

/// A valid boot message's body.
pub fn boot_seed() -> Vec<u8> {
    let args = BootArgs {
        id: "seed".to_owned(),
        spec: SpecJson(Some(crate::bundle::default_config(&["/bin/true"]).to_string())),
        bundle: "/bundle".to_owned(),
        fds: ContainerFds {
            stdio: vec![Fd(0), Fd(1), Fd(2)],
            gofer: vec![Fd(3)],
            pass: vec![FdMapping { guest: 5, host: 4 }],
            tty: Some(Fd(5)),
            ..ContainerFds::default()
        },
        gofer_mount_confs: Vec::new(),
        shared_mounts: vec![("scratch".to_owned(), Fd(6))],
        trace: None,
        listener: Some(Fd(7)),
        exit_file: None,
        log: None,
        log_level: 3,
        profile: true,
        panic_log: None,
        user_log: None,
        self_exe: None,
        host_pid: false,
        autostart: true,
        hold: false,
        allowed_uids: vec![7],
        to_restore: false,
        stop_grace_ms: 15_000,
    };
    let mut bytes = Vec::new();
    codec::encode_into(&args, &mut bytes).unwrap();
    bytes
}

/// Reads `data` as the body of a boot message with eight descriptors, as far as the stage does before it acts on it.
pub fn boot(data: &[u8]) {
    let Ok(args) = codec::decode::<BootArgs>(data) else { return };
    let fds: Vec<OwnedFd> = (0..8).map(|_| File::open("/dev/null").unwrap().into()).collect();
    let mut table = FdTable::new(fds);
    for fd in [args.listener, args.exit_file, args.log, args.panic_log, args.user_log, args.self_exe] {
        drop(table.take_option(fd));
    }
    for (_, fd) in &args.shared_mounts {
        drop(table.take(*fd));
    }
    drop(ContainerParts::take(&args.fds, &mut table));
    if let Some(text) = args.spec.0
        && let Ok(spec) = serde_json::from_str::<Spec>(&text)
    {
        check(&spec);
    }
}

/// Reads `data` as a bundle's configuration.
pub fn bundle(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(bundle) = Bundle::from_text("/no/such/bundle".into(), text.to_owned()) else { return };
    let _ = bundle.terminal();
    drop(podspec::placement(&bundle.spec, "id"));
    drop(podspec::id_maps(&bundle.spec));
    let _ = podspec::host_pid(&bundle.spec);
    drop(PodMountHints::from_spec(&bundle.spec));
    check(&bundle.spec);
    // The sandbox reads the text again, and must come to the same.
    let (again, spec) = compat::parse_spec(bundle.text.clone()).unwrap();
    assert_eq!((again, spec), (bundle.text, bundle.spec));
}

fn check(spec: &Spec) {
    // One line, of a length that people can read, whatever is in the configuration.
    if let Err(e) = validate::validate(spec) {
        assert!(!e.to_string().is_empty());
    }
    if let Some(profile) = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref()) {
        drop(seccomp::compile(profile, &seccomp::Options::default()));
    }
}
