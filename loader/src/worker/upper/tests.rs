use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;

fn archive(dir: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    write_layer(File::open(dir).unwrap().into(), &mut out).unwrap();
    out
}

/// Path → (type, size, link, content).
fn entries(bytes: &[u8]) -> BTreeMap<String, (EntryType, u64, Option<String>)> {
    let mut archive = tar::Archive::new(bytes);
    let all = archive.entries().unwrap();
    all.map(|e| {
        let e = e.unwrap();
        let link = e.link_name().unwrap().map(|l| l.display().to_string());
        (e.path().unwrap().display().to_string(), (e.header().entry_type(), e.size(), link))
    })
    .collect()
}

#[test]
fn everything_comes_out_of_tar_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("d/file"), "content").unwrap();
    std::fs::set_permissions(at("d/file"), std::fs::Permissions::from_mode(0o4711)).unwrap();
    std::fs::hard_link(at("d/file"), at("e")).unwrap();
    symlink("../does/not/./exist//", at("d/link")).unwrap();
    symlink("x".repeat(300), at("long")).unwrap();
    std::fs::create_dir_all(at(&"deep/".repeat(60))).unwrap();
    let name = "n".repeat(255);
    std::fs::write(at(&name), vec![7; 100_000]).unwrap();
    nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"in the middle", 1 << 30).unwrap();
    let bytes = archive(dir.path());
    assert!(bytes.len() < 1 << 20, "{} bytes: the hole is in it", bytes.len());
    // GNU tar is the judge.
    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("a.tar"), &bytes).unwrap();
    let extracted =
        Command::new("tar").args(["--same-owner", "-xpf", "a.tar"]).current_dir(out.path()).output().unwrap();
    assert!(extracted.status.success(), "{}", String::from_utf8_lossy(&extracted.stderr));
    let there = |name: &str| out.path().join(name);
    for name in ["d/file", "e", name.as_str(), "fifo", "d"] {
        let (was, is) = (at(name).symlink_metadata().unwrap(), there(name).symlink_metadata().unwrap());
        assert_eq!((was.mode(), was.uid(), was.gid()), (is.mode(), is.uid(), is.gid()), "{name}");
        assert_eq!((was.mtime(), was.mtime_nsec()), (is.mtime(), is.mtime_nsec()), "{name}");
    }
    assert_eq!(std::fs::read(there(&name)).unwrap(), vec![7; 100_000]);
    assert_eq!(there("e").metadata().unwrap().ino(), there("d/file").metadata().unwrap().ino());
    for name in ["d/link", "long"] {
        assert_eq!(std::fs::read_link(at(name)).unwrap(), std::fs::read_link(there(name)).unwrap());
    }
    assert!(there(&"deep/".repeat(60)).is_dir());
    assert!(!there("socket").exists());
    let sparse = File::open(there("sparse")).unwrap();
    assert_eq!(sparse.metadata().unwrap().len(), 1 << 40);
    let mut middle = [0; 13];
    sparse.read_exact_at(&mut middle, 1 << 30).unwrap();
    assert_eq!(&middle, b"in the middle");
}

#[test]
fn what_is_gone_and_what_hides_everything_are_whiteouts() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("d/empty")).unwrap();
    let gone = nix::sys::stat::mknod(&dir.path().join("d/gone"), SFlag::S_IFCHR, Mode::empty(), 0);
    let opaque = File::open(dir.path().join("d/empty")).unwrap();
    let marked = xattr::set(opaque.as_fd(), c"trusted.overlay.opaque", b"y");
    if gone.is_err() || marked.is_err() {
        return eprintln!("SKIPPED what_is_gone_and_what_hides_everything_are_whiteouts: needs root");
    }
    let found = entries(&archive(dir.path()));
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["d/", "d/.wh.gone", "d/empty/", "d/empty/.wh..wh..opq"]);
    assert_eq!(found["d/.wh.gone"], (EntryType::Regular, 0, None));
    xattr::set(opaque.as_fd(), c"trusted.overlay.redirect", b"/x").unwrap();
    let e = write_layer(File::open(dir.path()).unwrap().into(), &mut io::sink()).unwrap_err();
    assert!(e.message.starts_with("/d/empty: ") && e.message.contains("renamed"), "{e}");
}

#[test]
fn too_deep_is_an_error_with_the_path() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("d/".repeat(MAX_DEPTH as usize + 1))).unwrap();
    let e = write_layer(File::open(dir.path()).unwrap().into(), &mut io::sink()).unwrap_err();
    assert!(e.message.starts_with("/d/d/d"), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever a container calls its files: `tar` finds each once, under its name.
    #[test]
    fn any_names_come_out(names in proptest::collection::btree_set("[^/\u{0}]{1,60}|[a-z]{200,255}|\\.\\.[a-z]|[\\x{1}-\\x{1f}]{1,9}", 1..8), depth in 0usize..3) {
        let dir = tempfile::tempdir().unwrap();
        let below = (0..depth).fold(dir.path().to_owned(), |path, n| path.join(format!("{n}{}", "d".repeat(120))));
        std::fs::create_dir_all(&below).unwrap();
        let mut expected = std::collections::BTreeSet::new();
        for name in &names {
            let bytes = name.as_bytes();
            // What would be taken for a whiteout is refused, longer names the filesystem has not.
            if bytes.len() > 255 || name == "." || name == ".." || name.starts_with(".wh.") {
                continue;
            }
            std::fs::write(below.join(name), name).unwrap();
            expected.insert(below.join(name).strip_prefix(dir.path()).unwrap().to_owned());
        }
        let bytes = archive(dir.path());
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut found = std::collections::BTreeSet::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.header().entry_type() == EntryType::Regular {
                let path = entry.path().unwrap().strip_prefix("./").map_or_else(|_| entry.path().unwrap().into_owned(), Path::to_owned);
                let mut content = String::new();
                std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
                prop_assert_eq!(path.file_name().unwrap().to_str().unwrap(), &content);
                found.insert(path);
            }
        }
        prop_assert_eq!(found, expected);
    }
}
