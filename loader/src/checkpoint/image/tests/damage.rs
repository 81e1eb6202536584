//! Accidents and strangers: each is noticed, and named.
use super::*;

/// The page data is left out: its checksums are in the page index.
#[test]
fn every_changed_byte_is_noticed() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        for key in [None, Some(KEY)] {
            let good = seed(compression, key);
            read_all(&good, key).unwrap();
            let (pages, len) = open_bytes(&good, key).unwrap().raw(SECTION_PAGES).unwrap();
            // Of the zeros before the page data, some do.
            let worth = |at: &usize| {
                !(pages..pages + len).contains(&(*at as u64))
                    && (!(700..4090).contains(at) || at.is_multiple_of(16))
            };
            for at in (0..good.len()).filter(worth) {
                let mut bad = good.clone();
                bad[at] ^= [1, 0x80, 0xff][at % 3];
                assert!(read_all(&bad, key).is_err(), "{compression:?}, byte {at} of {}", good.len());
            }
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    let good = seed(Compression::None, None);
    for len in 0..good.len() {
        let error = text(open_bytes(&good[..len], None));
        if len == 0 {
            assert_eq!(error, "statefile cannot be empty");
        } else {
            let want = if len < 160 { 160 } else { good.len() };
            assert_eq!(error, format!("the statefile is truncated: {len} of {want} bytes are there"));
        }
    }
    let longer = [&good[..], b"x"].concat();
    assert!(text(open_bytes(&longer, None)).starts_with("the statefile has 1 bytes after its end"));
    let twice = good.repeat(2);
    assert!(text(open_bytes(&twice, None)).contains(&format!("has {} bytes after", good.len())));
}

#[test]
fn swapped_and_overwritten_parts_are_noticed() {
    let good = seed(Compression::None, None);
    for (from, to, len) in [(160, 300, 100), (0, 160, 64), (good.len() - 64, 170, 64), (4096, 160, 64)] {
        let mut bad = good.clone();
        bad.copy_within(from..from + len, to);
        assert_ne!(bad, good);
        assert!(read_all(&bad, None).is_err(), "{from} to {to}");
    }
    // Two images of the same content are two images: their parts do not mix.
    let other = seed(Compression::None, None);
    assert_eq!(good.len(), other.len());
    let mixed = [&good[..160], &other[160..]].concat();
    assert!(text(read_all(&mixed, None)).contains("damaged"));
}

#[test]
fn keys_have_to_fit() {
    let (sealed, open_image) = (seed(Compression::None, Some(KEY)), seed(Compression::None, None));
    assert_eq!(open_bytes(&sealed, Some(KEY)).unwrap().trust(), Trust::Sealed);
    assert_eq!(open_bytes(&open_image, None).unwrap().trust(), Trust::Unsealed);
    assert!(matches!(open_bytes(&sealed, Some(b"another key")), Err(ImageError::WrongKey)));
    assert!(matches!(open_bytes(&sealed, Some(b"")), Err(ImageError::WrongKey)));
    assert!(matches!(open_bytes(&sealed, None), Err(ImageError::MissingKey)));
    assert!(matches!(open_bytes(&open_image, Some(KEY)), Err(ImageError::UnexpectedKey)));
    // Looking needs no key, and says so.
    let look = Reader::inspect(file(&sealed), None).unwrap();
    assert_eq!((look.trust(), look.metadata().airlock_version.as_str()), (Trust::Unchecked, "1.2.3"));
    assert!(look.verify(None, &|_| {}).iter().any(|finding| finding.how.contains("no key")));
}

#[test]
fn who_forges_needs_the_key() {
    let sealed = seed(Compression::None, Some(KEY));
    let at = sealed.windows(7).position(|bytes| bytes == b"content").unwrap();
    let mut forged = sealed.clone();
    forged[at] = b'C';
    // Damage is named as such; checksums put right without the key are not enough.
    assert!(text(open_bytes(&forged, Some(KEY))).contains("do not match their checksum"));
    let repaired = fuzzing::repair(&forged).unwrap();
    open_bytes(&repaired, None).unwrap();
    assert!(matches!(open_bytes(&repaired, Some(KEY)), Err(ImageError::UnexpectedKey)));
    let mut resealed = repaired.clone();
    resealed[12..16].copy_from_slice(&sealed[12..16]);
    resealed[128..160].copy_from_slice(&sealed[128..160]);
    assert!(open_bytes(&resealed, Some(KEY)).is_err());
}

#[test]
fn a_sealed_image_needs_strong_sums_of_its_pages() {
    for (key, sums, good) in [
        (None, Sums::None, true),
        (Some(KEY), Sums::None, false),
        (Some(KEY), Sums::Xxh3, false),
        (Some(KEY), Sums::Blake3, true),
    ] {
        let mut metadata = Metadata::default();
        metadata.pages.sums = sums;
        create(key, Compression::None).1.finish(metadata.clone()).unwrap();
        metadata.pages.location = PagesIn::Files;
        assert_eq!(create(key, Compression::None).1.finish(metadata).is_ok(), good);
    }
}

#[test]
fn the_page_index_is_checked() {
    let (image, writer) = create(None, Compression::None);
    let mut metadata = Metadata::default();
    metadata.pages.location = PagesIn::Files;
    metadata.pages.index = Some(FileIdentity::of_bytes(b"index"));
    writer.finish(metadata).unwrap();
    let reader = open(&image, None).unwrap();
    let wrong = |index: &[u8]| -> Vec<String> {
        let findings = reader.verify(Some(&file(index)), &|_| {});
        findings.into_iter().filter(|finding| finding.error.is_some()).map(|finding| finding.part).collect()
    };
    assert_eq!(wrong(b"index"), Vec::<String>::new());
    assert_eq!(wrong(b"Index"), ["page index"]);
    assert_eq!(wrong(b"inde"), ["page index"]);
    assert_eq!(wrong(b"index2"), ["page index"]);
    // Without the file it cannot be known, which is said.
    assert!(reader.verify(None, &|_| {}).iter().any(|finding| finding.how.contains("not there")));
    reader.check_index(b"index").unwrap();
    assert!(text(reader.check_index(b"Index")).contains("the page index is not the one"));
    assert!(text(reader.check_parents(&[b"x"])).contains("builds upon 0 others, and 1 were given"));
    let identity = FileIdentity::of(&file(b"index"), "the index").unwrap();
    identity.check(b"index", "the index").unwrap();
    assert!(text(identity.check(b"inde", "the index")).contains("the index has 4 bytes instead of 5"));
    assert!(text(identity.check(b"indeX", "the index")).contains("the index is not the one"));
}

#[test]
fn the_indexes_of_images_below_are_checked() {
    let (image, writer) = create(Some(KEY), Compression::None);
    let parent = |index: &[u8]| Parent { index: FileIdentity::of_bytes(index), ..Parent::default() };
    let parents = vec![parent(b"one"), parent(b"two")];
    writer.finish(Metadata { parents, ..Metadata::default() }).unwrap();
    let reader = open(&image, Some(KEY)).unwrap();
    reader.check_parents(&[b"one", b"two"]).unwrap();
    assert!(text(reader.check_parents(&[b"two", b"one"])).contains("the image 1 below"));
    assert!(text(reader.check_parents(&[b"one", b"twO"])).contains("the image 2 below"));
    assert!(text(reader.check_parents(&[b"one"])).contains("upon 2 others"));
    assert!(text(reader.check_index(b"x")).contains("does not say which"));
}

#[test]
fn strangers_are_named() {
    let cases: [(&[u8], &str); 12] = [
        (b"gVisorSF\0\0\0\0\0\0\0\x02{}", "statefile of gVisor"),
        (&[0x19, 0x43, 0x56, 0x54, 0x16, 0x31, 0x31, 0x58], "image of CRIU"),
        (&[0x40, 0x59, 0x10, 0x55], "image of CRIU"),
        (&[0x16, 0x31, 0x31, 0x58, 0, 0, 0, 0], "image of CRIU"),
        (&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0], "zstd"),
        (b"ALPAGES\0", "the statefile is checkpoint.img"),
        (b"\x7fELF\x02\x01\x01\0", "a program"),
        (&[0; 300], "begins with zeros"),
        (b"{\"containers\":[]}", "does not begin as one"),
        (b"x", "does not begin as one"),
        (b"\n", "does not begin as one"),
    ];
    for (bytes, words) in cases {
        let error = text(open_bytes(bytes, None));
        assert!(
            error.starts_with("not a statefile of airlock: ") && error.contains(words),
            "{bytes:?}: {error}"
        );
    }
    let mut future = seed(Compression::None, None);
    future[8] = 2;
    future[10] = 7;
    let error = text(open_bytes(&future, None));
    assert!(error.contains("format 2.7") && error.contains("reads format 1:"), "{error}");
    future[8] = 0;
    assert!(text(open_bytes(&future, None)).contains("there is no format 0.7"));
}

#[test]
fn errors_have_kinds_for_programs() {
    use airlock_wire::error::{Error, Kind};
    let kind = |e: ImageError| Error::from(e).kind;
    assert_eq!(kind(ImageError::Empty), Kind::InvalidArgument);
    assert_eq!(kind(ImageError::WrongKey), Kind::Permission);
    assert_eq!(kind(ImageError::FutureFormat { major: 2, minor: 0 }), Kind::Unsupported);
    let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
    let error = ImageError::Io { what: "write".to_owned(), source: full };
    assert!(error.to_string().contains("No space left"));
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::StorageFull);
}
