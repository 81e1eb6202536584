//! What is written is read again; what is not finished is not readable.
use super::*;
use proptest::prelude::*;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;

const CHUNK: usize = 1 << 20;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn sections_of_all_lengths_come_back() {
    let lengths = [0, 1, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17];
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        for key in [None, Some(KEY)] {
            let (file, mut writer) = create(key, compression);
            let mut contents = Vec::new();
            for (i, len) in lengths.into_iter().enumerate() {
                // Half of it does not compress.
                let mut content = noise(len, i as u64 + 1);
                content[len / 2..].fill(i as u8);
                writer.put(&format!("s{i}"), &content).unwrap();
                contents.push(content);
            }
            let generation = writer.generation();
            let finished = writer.finish(Metadata { processes: 3, ..Metadata::default() }).unwrap();
            assert_eq!(finished.size, file.metadata().unwrap().len());
            let reader = open(&file, key).unwrap();
            assert_eq!((reader.generation(), reader.metadata().generation), (generation, generation));
            assert_eq!((reader.checksum(), reader.size()), (finished.checksum, finished.size));
            assert_eq!((reader.metadata().processes, reader.metadata().format.as_str()), (3, "1.0"));
            for (i, content) in contents.iter().enumerate() {
                let tag = format!("s{i}");
                assert!(reader.read(&tag, content.len() as u64).unwrap() == *content, "{tag}");
                let mut streamed = Vec::new();
                let mut stream = reader.stream(&tag).unwrap();
                assert_eq!(stream.len(), content.len() as u64);
                // Odd pieces, so that reads end in the middle of chunks.
                let mut piece = vec![0; 100_003];
                while let n @ 1.. = stream.read(&mut piece).unwrap() {
                    streamed.extend_from_slice(&piece[..n]);
                }
                assert!(streamed == *content, "{tag}");
                assert!(reader.sections()[i].stored <= content.len() as u64);
            }
            let whole: u64 = reader.sections().iter().map(|s| s.len).sum();
            let stored: u64 = reader.sections().iter().map(|s| s.stored).sum();
            match compression {
                Compression::None => assert_eq!(stored, whole),
                _ => assert!(stored < whole * 6 / 10, "{compression:?}: {stored} of {whole}"),
            }
        }
    }
}

#[test]
fn content_of_unknown_length_is_written_piece_by_piece() {
    let (file, mut writer) = create(None, Compression::Lz4);
    let content = noise(9 * CHUNK + 5, 9);
    let mut section = writer.section("fs:0").unwrap();
    for piece in content.chunks(777_777) {
        section.write_all(piece).unwrap();
    }
    section.flush().unwrap();
    section.finish().unwrap();
    // One that is given up leaves nothing.
    writer.section("given-up").unwrap().write_all(&content).unwrap();
    writer.put("after", b"x").unwrap();
    writer.finish(Metadata::default()).unwrap();
    let reader = open(&file, None).unwrap();
    assert!(reader.read("fs:0", u64::MAX).unwrap() == content);
    assert!(!reader.has("given-up"));
    assert_eq!(reader.read("after", 1).unwrap(), b"x");
}

#[test]
fn raw_sections_begin_at_pages_and_may_have_holes() {
    let (file, mut writer) = create(None, Compression::None);
    writer.put("state", b"{}").unwrap();
    let offset = writer.raw(SECTION_PAGES).unwrap();
    assert_eq!(offset % 4096, 0);
    assert!(text(writer.put("x", b"")).contains("\"pages\" has ended"));
    writer.file().write_all_at(b"page", offset + 8192).unwrap();
    writer.end_raw(16384).unwrap();
    let second = writer.raw("raw2").unwrap();
    assert_eq!(second, offset + 16384);
    writer.end_raw(0).unwrap();
    assert!(text(writer.end_raw(0)).contains("no raw section"));
    writer.put("after", b"x").unwrap();
    writer.finish(Metadata::default()).unwrap();
    let reader = open(&file, None).unwrap();
    assert_eq!(reader.raw(SECTION_PAGES).unwrap(), (offset, 16384));
    let mut pages = vec![1; 16384];
    reader.file().read_exact_at(&mut pages, offset).unwrap();
    assert!(pages[8192..8196] == *b"page" && pages[..8192].iter().all(|b| *b == 0));
    assert!(text(reader.read(SECTION_PAGES, 1 << 20)).contains("is raw"));
    assert!(text(reader.raw("state")).contains("cannot be mapped"));
    assert_eq!(text(reader.read("no", 1)), "the statefile has no section \"no\"");
    assert!(text(reader.read("state", 1)).contains("2 bytes; 1 are allowed"));
}

#[test]
fn an_image_is_incomplete_until_it_is_finished() {
    let words = "the statefile is incomplete";
    let (file, mut writer) = create(None, Compression::None);
    assert!(text(open(&file, None)).starts_with(words));
    writer.put("state", &noise(CHUNK * 3, 1)).unwrap();
    writer.raw(SECTION_PAGES).unwrap();
    assert!(text(open(&file, None)).starts_with(words));
    assert!(text(Reader::inspect(file.try_clone().unwrap(), None)).starts_with(words));
    // The writer dies here.
    drop(writer);
    assert!(text(open(&file, None)).starts_with(words));

    // A complete image is one no more as soon as another is begun in its place, and nothing of it is left afterwards.
    let mut writer = Writer::create(file.try_clone().unwrap(), WriterOptions::default()).unwrap();
    assert!(text(open(&file, None)).starts_with(words));
    writer.put("state", b"{}").unwrap();
    writer.finish(Metadata::default()).unwrap();
    assert!(open(&file, None).unwrap().size() < 4096);
    let writer = Writer::create(file.try_clone().unwrap(), WriterOptions::default()).unwrap();
    drop(writer);
    assert!(text(open(&file, Some(KEY))).starts_with(words));
}

#[test]
fn a_failed_write_leaves_an_incomplete_image() {
    // Sealing against growth makes writes fail as a full disk does.
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = File::from(memfd_create(c"x", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap());
    let mut writer = Writer::create(file.try_clone().unwrap(), WriterOptions::default()).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    let error = text(writer.put("state", &[0; 100_000]));
    assert!(error.starts_with("write 100000 bytes of the statefile at offset 160: "), "{error}");
    assert!(text(writer.finish(Metadata::default())).contains("could not be written"));
    assert!(text(open(&file, None)).contains("incomplete"));
}

#[test]
fn what_is_no_statefile_to_write_is_refused_by_name() {
    let create = |file: File| text(Writer::create(file, WriterOptions::default()));
    let (read, write) = nix::unistd::pipe().unwrap();
    assert!(create(File::from(write)).ends_with("is a pipe"));
    assert!(text(Reader::open(File::from(read), None)).ends_with("is a pipe"));
    let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(create(File::from(std::os::fd::OwnedFd::from(one))).ends_with("is a socket"));
    assert!(create(File::open("/").unwrap()).ends_with("is a directory"));
    assert!(create(File::open("/dev/null").unwrap()).ends_with("is a character device"));
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    let open = |flags: i32, write: bool| {
        use std::os::unix::fs::OpenOptionsExt;
        File::options().read(!write).write(write).custom_flags(flags).open(&path).unwrap()
    };
    assert!(create(open(0, false)).contains("for reading only"));
    assert!(create(open(libc::O_APPEND, true)).contains("for appending"));
    assert!(create(open(libc::O_PATH, true)).contains("O_PATH"));
    assert!(text(Reader::open(open(0, true), None)).contains("for writing only"));
    let options = WriterOptions { key: Some(Vec::new()), ..WriterOptions::default() };
    assert!(text(Writer::create(open(0, true), options)).contains("the key is empty"));
}

#[test]
fn positions_of_descriptors_do_not_matter() {
    let mut file = file(b"old content that is longer than nothing");
    let mut writer = Writer::create(file.try_clone().unwrap(), WriterOptions::default()).unwrap();
    writer.put("state", b"{}").unwrap();
    writer.finish(Metadata::default()).unwrap();
    file.seek(std::io::SeekFrom::End(0)).unwrap();
    let at = file.stream_position().unwrap();
    assert_eq!(open(&file, None).unwrap().read("state", 9).unwrap(), b"{}");
    assert_eq!(file.stream_position().unwrap(), at);
}

#[test]
fn names_of_sections_are_checked() {
    let (_file, mut writer) = create(None, Compression::None);
    writer.put("a", b"").unwrap();
    for bad in ["a", "", "A", "ä", "a b", "a\n", &"a".repeat(201)] {
        assert!(matches!(writer.put(bad, b""), Err(ImageError::Misuse(_))), "{bad:?}");
    }
}

#[test]
fn metadata_keeps_specs_and_counts_containers() {
    let (file, writer) = create(None, Compression::None);
    let mut metadata = Metadata { container_count: Some("2".to_owned()), ..Metadata::default() };
    let spec = r#"{"ociVersion":"1.2.0","z":{"b":1,"a":1.50}}"#;
    metadata.container_specs.insert("web".to_owned(), SpecText(spec.to_owned()));
    metadata.user.insert("who".to_owned(), "me".to_owned());
    writer.finish(metadata.clone()).unwrap();
    let reader = open(&file, None).unwrap();
    let read = reader.metadata();
    assert_eq!(read.container_specs["web"].0, spec, "not one byte of a spec changes");
    assert_eq!((read.user["who"].as_str(), read.count_containers().unwrap()), ("me", 2));
    // gVisor's shape: plain JSON with its two keys.
    let json: serde_json::Value = serde_json::from_slice(&read.encode().unwrap()).unwrap();
    assert_eq!(
        (&json["container_count"], &json["container_specs"]["web"]["ociVersion"]),
        (&"2".into(), &"1.2.0".into())
    );

    let count = |text: Option<&str>, names: usize| {
        let containers = vec![ContainerName::default(); names];
        Metadata { container_count: text.map(str::to_owned), containers, ..Metadata::default() }
            .count_containers()
    };
    assert_eq!(
        (count(None, 0).unwrap(), count(Some("7"), 0).unwrap(), count(Some("1"), 1).unwrap()),
        (1, 7, 1)
    );
    assert!(text(count(Some("x"), 0)).starts_with("invalid container count: "));
    for low in ["0", "-1"] {
        assert_eq!(text(count(Some(low), 0)), format!("invalid container count value: {low}"));
    }
    assert!(text(count(Some("2"), 1)).contains("1 are named"));
    let metadata = Metadata { airlock_version: "0.1.0".to_owned(), ..Metadata::default() };
    metadata.check_version("0.1.0").unwrap();
    assert_eq!(
        text(metadata.check_version("0.2.0")),
        "airlock version does not match across checkpoint restore, checkpoint: 0.1.0 current: 0.2.0"
    );
    let bad = Metadata {
        container_specs: [("a".to_owned(), SpecText("{".to_owned()))].into(),
        ..Metadata::default()
    };
    assert!(matches!(create(None, Compression::None).1.finish(bad), Err(ImageError::Misuse(_))));
}

#[test]
fn compression_has_names() {
    for name in ["none", "lz4", "zstd"] {
        assert_eq!(Compression::from_name(name).unwrap().name(), name);
    }
    assert_eq!(Compression::from_name("").unwrap(), Compression::None);
    assert_eq!(Compression::from_name("flate-best-speed").unwrap(), Compression::Lz4);
    assert!(text(Compression::from_name("bzip2")).contains("none, lz4, zstd"));
}

#[test]
fn generations_are_uuids_and_differ() {
    let (a, b) = (Generation::new().unwrap(), Generation::new().unwrap());
    assert_ne!(a, b);
    let text = a.to_string();
    assert_eq!((text.len(), text.as_bytes()[14]), (36, b'4'));
    assert_eq!(text.parse(), Ok(a));
    for bad in [
        "",
        "00000000-0000-4000-8000-00000000000",
        "000000000000-4000-8000-0000000000000000",
        &"-".repeat(36),
    ] {
        assert!(bad.parse::<Generation>().is_err(), "{bad}");
    }
    let digest = Digest::of(b"");
    assert!(digest.to_string().starts_with("af1349b9"), "the published test vector");
    assert_eq!(digest.to_string().parse(), Ok(digest));
    assert!("zz".repeat(32).parse::<Digest>().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_sections_come_back(
        sections in prop::collection::btree_map("[a-z0-9:._-]{1,12}", (any::<bool>(), prop::collection::vec(any::<u8>(), 0..5000), 1..20usize), 0..8),
        sealed: bool,
        compression in prop::sample::select(vec![Compression::None, Compression::Lz4, Compression::Zstd]),
        user: std::collections::BTreeMap<String, String>,
    ) {
        let key = sealed.then_some(KEY);
        let (file, mut writer) = create(key, compression);
        for (tag, (raw, content, repeat)) in &sections {
            let content = content.repeat(*repeat);
            if *raw {
                let offset = writer.raw(tag).unwrap();
                writer.file().write_all_at(&content, offset).unwrap();
                writer.end_raw(content.len() as u64).unwrap();
            } else {
                writer.put(tag, &content).unwrap();
            }
        }
        writer.finish(Metadata { user: user.clone(), ..Metadata::default() }).unwrap();
        let reader = open(&file, key).unwrap();
        prop_assert_eq!(&reader.metadata().user, &user);
        for (tag, (raw, content, repeat)) in &sections {
            let content = content.repeat(*repeat);
            if *raw {
                let (offset, len) = reader.raw(tag).unwrap();
                let mut read = vec![0; len as usize];
                reader.file().read_exact_at(&mut read, offset).unwrap();
                prop_assert_eq!(read, content);
            } else {
                prop_assert_eq!(reader.read(tag, 1 << 20).unwrap(), content);
            }
        }
    }
}
