//! Images as people and other programs meet them: looked at, checked, compared, damaged, and read as the documentation says.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_loader::checkpoint::image::{
    Compression, Metadata, PAGES, PAGES_META, Reader, STATEFILE, Writer, WriterOptions, fs_section,
};
use airlock_loader::checkpoint::state::{ContainerState, SandboxState};
use airlock_tests::{Bundle, State, need, unique, workspace};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"))
}

fn stdout(out: &Output) -> String {
    String::from_utf8(out.stdout.clone()).unwrap()
}

/// `airlock statefile …`, its exit status and output.
fn statefile<S: AsRef<std::ffi::OsStr>>(state: &State, args: impl IntoIterator<Item = S>) -> (i32, String) {
    let mut command = state.command(["statefile"]);
    let out = command.args(args).output().unwrap();
    (out.status.code().unwrap(), stdout(&out) + &String::from_utf8_lossy(&out.stderr))
}

/// An image that no checkpoint made: a state without processes.
fn made_up(dir: &Path, key: Option<&[u8]>) -> PathBuf {
    let path = dir.join(STATEFILE);
    let options = WriterOptions { key: key.map(<[u8]>::to_vec), compression: Compression::None, sync: true };
    let mut writer = Writer::create(File::create(&path).unwrap(), options).unwrap();
    let container = ContainerState { cid: "c".to_owned(), name: "n".to_owned(), ..ContainerState::default() };
    let state = SandboxState { containers: vec![container], ..SandboxState::default() };
    writer.put_json("state", &state).unwrap();
    writer.put(&fs_section(0), b"content").unwrap();
    let metadata =
        Metadata { container_count: Some("1".to_owned()), sandbox: "s".to_owned(), ..Metadata::default() };
    writer.finish(metadata).unwrap();
    path
}

/// A container that was saved into a directory of its own and goes on.
struct Saved {
    state: State,
    id: String,
    dir: tempfile::TempDir,
    bundle: Bundle,
}

impl Saved {
    fn new(args: &[&str]) -> Self {
        let (state, bundle, id) = (State::new(), Bundle::new(args), unique("img"));
        state.detached(&["run", "-d", "-b", bundle.text(), &id]);
        Self { state, id, dir: tempfile::tempdir().unwrap(), bundle }
    }

    /// Makes an image of that name.
    fn image(&self, name: &str, options: &[&str]) -> PathBuf {
        let image = self.dir.path().join(name);
        let fixed = ["checkpoint", "--leave-running", "--image-path", image.to_str().unwrap()];
        self.state.ok(fixed.iter().chain(options).chain([&self.id.as_str()]));
        image
    }

    fn statefile(&self, args: &[&str]) -> (i32, String) {
        statefile(&self.state, args)
    }
}

#[test]
fn the_documented_reader_reads_an_image() {
    need!("python3");
    let dir = tempfile::tempdir().unwrap();
    made_up(dir.path(), None);
    let page = std::fs::read_to_string(workspace().join("docs/CHECKPOINT.md")).unwrap();
    let (_, code) = page.split_once("```python\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    let program = format!("{code}\nprint(metadata['sandbox'], state['containers'][0]['cid'])");
    let out = Command::new("python3").args(["-c", &program]).current_dir(dir.path()).output().unwrap();
    assert_eq!(stdout(&out), "s c\n", "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn an_image_is_shown_as_its_owner_and_others_see_it() {
    need!();
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let path = made_up(dir.path(), Some(b"secret"));
    let key = dir.path().join("key");
    std::fs::write(&key, "secret").unwrap();
    let (image, key) = (dir.path().to_str().unwrap(), key.to_str().unwrap());
    // The directory and the file are the same image.
    for name in [image, path.to_str().unwrap()] {
        let (status, text) = statefile(&state, ["show", name]);
        assert!(status == 0 && text.contains("seal          not checked"), "{text}");
    }
    let (_, text) = statefile(&state, ["show", "--key-file", key, image]);
    assert!(text.contains("seal          fits the key") && text.contains("\nfs:0    none"), "{text}");
    let shown = json(&statefile(&state, ["show", "-format=json", image]).1);
    assert_eq!((&shown["sealed"], &shown["authentic"]), (&true.into(), &false.into()));
    assert_eq!(shown["metadata"]["container_count"], "1");
    assert_eq!(shown["sections"][1]["name"], "fs:0");
    std::fs::write(dir.path().join("key"), "guess").unwrap();
    let (status, text) = statefile(&state, ["show", "--key-file", key, image]);
    assert!(status == 2 && text.contains("the key does not fit"), "{status} {text}");
    let (status, text) = statefile(&state, ["verify", "--key-file", key, image]);
    assert!(status == 1 && text.contains("the key does not fit"), "{status} {text}");
    // What it is not asked, and what is not there.
    for (args, words) in [
        (&["show", image, "7"][..], "one image is enough"),
        (&["fds", image, "7"], "no process 7"),
        (&["fds", image, "seven"], "is no pid"),
        (&["diff", image], "diff needs two images"),
        (&["show", "/no/such/image"], "No such file"),
        (&["show", "/"], "there is no image in /"),
        (&["peek", image], "possible values: show, ps, fds, maps, verify, diff"),
    ] {
        let (status, text) = statefile(&state, args);
        assert!(
            status == 2 && text.contains(words) && text.lines().count() == 1,
            "{args:?}: {status} {text}"
        );
    }
}

#[test]
fn a_saved_program_is_found_in_its_image() {
    need!("busybox");
    let saved = Saved::new(&["sh", "-c", "exec 7</etc/passwd; sleep 1000 & wait"]);
    let image = saved.image("a", &["--metadata", "who=me"]);
    let image = image.to_str().unwrap();
    let shown = json(&saved.statefile(&["show", "--format", "json", image]).1);
    let metadata = &shown["metadata"];
    assert_eq!((&metadata["processes"], &metadata["user"]["who"]), (&2.into(), &"me".into()));
    assert_eq!(metadata["containers"][0]["id"], saved.id.as_str());
    assert_eq!(metadata["container_specs"].as_object().unwrap().len(), 1);
    assert!(metadata["pages"]["count"].as_u64().unwrap() > 0);
    let processes = json(&saved.statefile(&["ps", "-f", "json", image]).1);
    let processes = processes.as_array().unwrap();
    let commands: Vec<&str> = processes.iter().map(|p| p["command"].as_str().unwrap()).collect();
    assert_eq!(commands, ["sh", "sleep"]);
    assert_eq!((&processes[0]["pid"], &processes[1]["ppid"]), (&1.into(), &1.into()));
    assert!(processes[0]["stored"].as_u64().unwrap() > 0);
    let fds = json(&saved.statefile(&["fds", "-f", "json", image, "1"]).1);
    let fds = fds.as_array().unwrap();
    let seven = fds.iter().find(|fd| fd["fd"] == 7).unwrap();
    assert_eq!(
        (&seven["what"], &seven["kind"], &seven["flags"]),
        (&"/etc/passwd".into(), &"file".into(), &"r".into())
    );
    assert_eq!(fds.iter().filter(|fd| fd["kind"] == "external").count(), 3);
    let maps = json(&saved.statefile(&["maps", "-f", "json", image, "1"]).1);
    let maps = maps.as_array().unwrap();
    for what in ["/bin/busybox", "[stack]", "[vdso]"] {
        assert!(maps.iter().any(|map| map["what"] == what), "{what}: {maps:?}");
    }
    let stored: u64 = maps.iter().map(|map| map["stored"].as_u64().unwrap()).sum();
    assert_eq!(stored, processes[0]["stored"].as_u64().unwrap());
    for action in ["show", "ps", "fds", "maps"] {
        let (status, table) = saved.statefile(&[action, image]);
        assert!(status == 0 && table.lines().count() > 1, "{action}: {table}");
    }
}

#[test]
fn two_images_of_one_program_differ_in_what_it_did() {
    need!("busybox");
    let saved =
        Saved::new(&["sh", "-c", "trap 'exec 5</etc/passwd; x=changed' USR1; while :; do sleep 1; done"]);
    let first = saved.image("a", &[]);
    let first = first.to_str().unwrap();
    assert_eq!(saved.statefile(&["diff", first, first]), (0, String::new()));
    saved.state.ok(["kill", &saved.id, "USR1"]);
    airlock_tests::wait::until("the descriptor is open", || {
        let image = saved.image("b", &[]);
        let fds = json(&saved.statefile(&["fds", "-f", "json", image.to_str().unwrap(), "1"]).1);
        fds.as_array().unwrap().iter().any(|fd| fd["fd"] == 5).then_some(())
    });
    let second = saved.dir.path().join("b");
    let second = second.to_str().unwrap();
    let (status, text) = saved.statefile(&["diff", first, second]);
    assert_eq!(status, 1);
    let line = |start: &str| {
        text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {text}"))
    };
    assert!(line("+ processes/__no_name_0/1/descriptors/5").ends_with("file: /etc/passwd"), "{text}");
    assert!(line("~ processes/__no_name_0/1/memory/memory content").contains("pages changed"), "{text}");
    let found = json(&saved.statefile(&["diff", "-f", "json", second, first]).1);
    let gone = found
        .as_array()
        .unwrap()
        .iter()
        .find(|d| d["path"].as_str().unwrap().ends_with("descriptors/5"))
        .unwrap();
    assert!(gone["second"].is_null() && gone["first"]["what"] == "file: /etc/passwd");
}

/// Every byte of a small image's files matters: some, spread over each file, are changed one by one.
#[test]
fn damage_is_found_wherever_it_is() {
    need!("busybox");
    let saved = Saved::new(&["sleep", "1000"]);
    let key = saved.dir.path().join("key");
    std::fs::write(&key, "secret").unwrap();
    let key = key.to_str().unwrap();
    for (name, options) in [
        ("plain", &[][..]),
        ("lz4", &["--compression", "lz4"]),
        ("zstd", &["--compression=zstd"]),
        ("sealed", &["--key-file", key]),
    ] {
        let image = saved.image(name, options);
        let verify = || {
            let args = ["verify", image.to_str().unwrap(), "--key-file", key];
            saved.statefile(if name == "sealed" { &args } else { &args[..2] })
        };
        let (status, text) = verify();
        assert!(status == 0 && !text.contains("not checked"), "{name}: {text}");
        for file in [STATEFILE, PAGES_META, PAGES] {
            let path = image.join(file);
            let good = std::fs::read(&path).unwrap();
            let places = (0..good.len()).step_by((good.len() / 12).max(1)).chain([good.len() - 1]);
            // Compressed pieces begin at pages; nobody reads the zeros in front of them.
            let padded = file == PAGES && ["lz4", "zstd"].contains(&name);
            for at in places.filter(|at| !padded || good[*at] != 0) {
                let mut bad = good.clone();
                bad[at] ^= 0x41;
                std::fs::write(&path, &bad).unwrap();
                let (status, text) = verify();
                assert!(
                    status == 1 && text.contains("damaged"),
                    "{name}: {file}, byte {at}: {status} {text}"
                );
            }
            for len in [0, 1, good.len() / 2, good.len() - 1] {
                std::fs::write(&path, &good[..len]).unwrap();
                assert_eq!(verify().0, 1, "{name}: {file} cut to {len} bytes");
            }
            std::fs::write(&path, &good).unwrap();
        }
        assert_eq!(verify().0, 0, "{name}");
    }
}

#[test]
fn files_of_different_images_do_not_go_together() {
    need!("busybox");
    let saved = Saved::new(&["sleep", "1000"]);
    let (one, two) = (saved.image("one", &[]), saved.image("two", &[]));
    std::fs::copy(two.join(PAGES_META), one.join(PAGES_META)).unwrap();
    let (status, text) = saved.statefile(&["verify", one.to_str().unwrap()]);
    assert!(
        status == 1 && text.contains("page index is not the one that belongs to the statefile"),
        "{text}"
    );
    // A statefile alone is as good as ever; what is missing is said.
    for name in [PAGES_META, PAGES] {
        std::fs::remove_file(two.join(name)).unwrap();
    }
    let (status, text) = saved.statefile(&["verify", two.to_str().unwrap()]);
    assert!(status == 0 && text.contains("not checked   the files with the pages are not there"), "{text}");
    assert_eq!(saved.statefile(&["fds", two.to_str().unwrap()]).0, 0);
}

/// The same image with other metadata.
fn rewrite(image: &Path, change: impl FnOnce(&mut Metadata)) {
    let path = image.join(STATEFILE);
    let old = Reader::open(File::open(&path).unwrap(), None).unwrap();
    let fresh = image.join("fresh");
    let mut writer = Writer::create(File::create(&fresh).unwrap(), WriterOptions::default()).unwrap();
    for section in old.sections() {
        writer.put(&section.tag, &old.read(&section.tag, 1 << 30).unwrap()).unwrap();
    }
    let mut metadata = old.metadata().clone();
    change(&mut metadata);
    writer.finish(metadata).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

#[test]
fn a_bad_image_is_refused_by_name_and_leaves_nothing() {
    need!("busybox");
    let saved = Saved::new(&["sleep", "1000"]);
    let good = saved.image("good", &[]);
    let key = saved.dir.path().join("key");
    std::fs::write(&key, "secret").unwrap();
    let key = key.to_str().unwrap();
    let sealed = saved.image("sealed", &["--key-file", key]);
    let state = State::new();
    let restore = |image: &Path, options: &[&str]| {
        let id = unique("bad");
        let fixed =
            ["restore", "--detach", "--bundle", saved.bundle.text(), "--image-path", image.to_str().unwrap()];
        let error = state.fails(fixed.iter().chain(options).chain([&id.as_str()]));
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        assert_eq!(state.ok(["list", "-q"]), "", "after: {error}");
        error
    };
    let bad = saved.dir.path().join("bad");
    let copy = || {
        drop(std::fs::remove_dir_all(&bad));
        std::fs::create_dir(&bad).unwrap();
        for name in [STATEFILE, PAGES_META, PAGES] {
            std::fs::copy(good.join(name), bad.join(name)).unwrap();
        }
    };
    let with = |name: &str, change: &dyn Fn(&mut Vec<u8>), words: &str| {
        copy();
        let mut bytes = std::fs::read(bad.join(name)).unwrap();
        change(&mut bytes);
        std::fs::write(bad.join(name), bytes).unwrap();
        let error = restore(&bad, &[]);
        assert!(error.contains(words), "{name}, {words}: {error}");
    };
    let half = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
    with(STATEFILE, &Vec::clear, "statefile cannot be empty");
    with(STATEFILE, &half, "the statefile is truncated");
    with(STATEFILE, &|bytes| bytes[12] |= 1, "the statefile is incomplete");
    with(STATEFILE, &|bytes| bytes[8] = 9, "the statefile has format 9.0");
    with(STATEFILE, &|bytes| bytes[200] ^= 1, "do not match their checksum");
    let in_state = |bytes: &mut Vec<u8>| {
        let at = bytes.windows(13).position(|word| word == b"{\"containers\"").unwrap();
        bytes[at] ^= 1;
    };
    with(STATEFILE, &in_state, "section \"state\"");
    with(STATEFILE, &|bytes| *bytes.last_mut().unwrap() ^= 1, "checksum of header, metadata and directory");
    with(STATEFILE, &|bytes| bytes.extend(b"more"), "4 bytes after its end");
    with(STATEFILE, &|bytes| *bytes = b"gVisorSF\0\0\0\0\0\0\0\x02{}".to_vec(), "statefile of gVisor");
    with(STATEFILE, &|bytes| *bytes = b"#!/bin/sh\n".to_vec(), "not a statefile of airlock");
    with(PAGES_META, &Vec::clear, "pages metadata file");
    with(PAGES_META, &|bytes| bytes[100] ^= 1, "pages metadata file");
    with(PAGES, &half, "pages file");
    with(PAGES, &|bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1), "does not have its checksum");

    let told = |change: &dyn Fn(&mut Metadata), words: &str| {
        copy();
        rewrite(&bad, change);
        let error = restore(&bad, &[]);
        assert!(error.contains(words), "{words}: {error}");
    };
    let version = format!("checkpoint: 0.0.9 current: {}", env!("CARGO_PKG_VERSION"));
    let version = format!("airlock version does not match across checkpoint restore, {version}");
    told(&|m| m.airlock_version = "0.0.9".to_owned(), &version);
    told(&|m| m.container_count = Some("many".to_owned()), "invalid container count: ");
    told(&|m| m.container_count = Some("0".to_owned()), "invalid container count value: 0");
    told(&|m| m.container_specs.clear(), "container specs not found in metadata during restore");
    told(&|m| m.pre_dump = true, "pre-dump");

    // Keys: none, another, and one for an image that has none.
    assert!(restore(&sealed, &[]).contains("sealed with a key"));
    assert!(restore(&good, &["--key-file", key]).contains("not sealed"));
    std::fs::write(key, "guess").unwrap();
    assert!(restore(&sealed, &["--key-file", key]).contains("the key does not fit"));
    for name in [STATEFILE, PAGES_META] {
        copy();
        std::fs::remove_file(bad.join(name)).unwrap();
        assert!(restore(&bad, &[]).contains(name));
    }

    // All of this was about the images: a good one is restored.
    let id = unique("good");
    let good = good.to_str().unwrap();
    state.detached(&["restore", "--detach", "--bundle", saved.bundle.text(), "--image-path", good, &id]);
    assert_eq!(state.status(&id), "running");
}

#[test]
fn an_image_upon_another_is_checked_with_it() {
    need!("busybox");
    let saved = Saved::new(&["sh", "-c", "while :; do sleep 1; done"]);
    let base = saved.image("base", &["--pre-dump"]);
    let other = saved.image("other", &["--pre-dump"]);
    std::fs::create_dir(saved.dir.path().join("top")).unwrap();
    let top = saved.image("top", &["--parent-path", "../base"]);
    let top = top.to_str().unwrap();
    let shown = |image: &str| json(&saved.statefile(&["show", "-f", "json", image]).1)["metadata"].clone();
    let (below, above) = (shown(base.to_str().unwrap()), shown(top));
    assert_eq!(above["parents"][0]["generation"], below["generation"]);
    assert_eq!(above["parents"][0]["index"], below["pages"]["index"]);
    assert!(above["pages"]["count"].as_u64() < below["pages"]["count"].as_u64());
    // All pages count, wherever they are stored.
    let stored = json(&saved.statefile(&["ps", "-f", "json", top]).1)[0]["stored"].as_u64().unwrap();
    assert!(stored > above["pages"]["size"].as_u64().unwrap(), "{stored} {above}");
    let (status, text) = saved.statefile(&["verify", top]);
    assert!(status == 0 && !text.contains("not checked"), "{text}");

    let pages = std::fs::read(base.join(PAGES)).unwrap();
    let mut bad = pages.clone();
    bad.iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(base.join(PAGES), &bad).unwrap();
    let (status, text) = saved.statefile(&["verify", top]);
    assert!(status == 1 && text.contains("does not have its checksum"), "{text}");
    std::fs::write(base.join(PAGES), &pages).unwrap();
    std::fs::copy(other.join(PAGES_META), base.join(PAGES_META)).unwrap();
    let (status, text) = saved.statefile(&["verify", top]);
    assert!(status == 1 && text.contains("the page index of the image 1 below"), "{text}");
    std::fs::remove_dir_all(&base).unwrap();
    let (status, text) = saved.statefile(&["verify", top]);
    assert!(status == 0 && text.contains("not checked") && text.contains("builds upon"), "{status} {text}");
}
