//! Files whose checksums are right and whose content was made to hurt.
use super::super::directory::{self, Chunk, Form, Section};
use super::super::header::{self, Header};
use super::*;

/// A file with that content between header and metadata, and that metadata and directory.
fn forge(body: &[u8], metadata: &[u8], directory: &[u8]) -> Vec<u8> {
    let at = header::LEN + body.len() as u64;
    let generation = Generation([4; 16]);
    let head = Header {
        total: at + (metadata.len() + directory.len()) as u64,
        metadata: (at, metadata.len() as u64),
        directory: (at + metadata.len() as u64, directory.len() as u64),
        generation,
        ..Header::default()
    };
    let (head, _) = head.complete(metadata, directory, None);
    [&head[..], body, metadata, directory].concat()
}

fn metadata() -> Vec<u8> {
    Metadata { generation: Generation([4; 16]), ..Metadata::default() }.encode().unwrap()
}

fn section(tag: &str, body: &[u8], len: u64, compression: Compression) -> Section {
    let compressed = compression != Compression::None;
    let chunk = Chunk { stored: body.len() as u32, compressed, digest: Digest::of(body) };
    Section {
        tag: tag.to_owned(),
        offset: header::LEN,
        stored: body.len() as u64,
        len,
        form: Form::Chunked { compression, chunk_size: 1 << 20, chunks: vec![chunk] },
    }
}

fn forged(body: &[u8], sections: &[Section]) -> Result<Reader> {
    open_bytes(&forge(body, &metadata(), &directory::encode(sections)), None)
}

#[test]
fn the_forger_of_these_tests_can_make_good_files() {
    let body = b"hello";
    let reader = forged(body, &[section("a", body, 5, Compression::None)]).unwrap();
    assert_eq!(reader.read("a", 5).unwrap(), body);
    forged(b"", &[]).unwrap();
}

#[test]
fn sections_cannot_be_where_they_should_not() {
    let body = [7; 64];
    let good = section("a", &body, 64, Compression::None);
    let change = |change: fn(&mut Section)| {
        let mut section = good.clone();
        change(&mut section);
        text(forged(&body, &[section]))
    };
    let place = "is not where it should be";
    assert!(change(|s| s.offset = 0).contains(place));
    assert!(change(|s| s.offset = 161).contains(place));
    assert!(change(|s| s.offset = u64::MAX).contains(place));
    assert!(change(|s| s.tag = "A b".to_owned()).contains("name that is none"));
    assert!(change(|s| s.tag = String::new()).contains("name that is none"));
    assert!(change(|s| s.stored = u64::MAX).contains("not as long"));
    assert!(change(|s| s.len = u64::MAX).contains("number of its chunks"));
    assert!(change(|s| s.len = 63).contains("impossible length"));
    assert!(change(|s| s.len = 0).contains("number of its chunks"));
    for size in [0, 1, 4095, 5000, 32 << 20, u32::MAX] {
        let mut section = good.clone();
        let Form::Chunked { chunk_size, .. } = &mut section.form else { unreachable!() };
        *chunk_size = size;
        assert!(text(forged(&body, &[section])).contains("impossible size"), "{size}");
    }
    // Twice, overlapping, or not all of the file.
    let again = |tag: &str| Section { tag: tag.to_owned(), ..good.clone() };
    assert!(text(forged(&body, &[again("a"), again("b")])).contains(place));
    assert!(text(forged(&body.repeat(2), &[again("a")])).contains("unknown bytes"));
    let second = Section { offset: good.offset + 64, ..again("a") };
    assert!(text(forged(&body.repeat(2), &[again("a"), second])).contains("two sections \"a\""));
    assert!(text(forged(&body[..32], &[again("a")])).contains(place));
    // Raw ones have no chunks and begin at pages.
    let raw = |offset, stored, len| Section { tag: "r".to_owned(), offset, stored, len, form: Form::Raw };
    assert!(text(forged(&body, &[raw(160, 64, 64)])).contains(place));
    assert!(text(forged(&body, &[raw(4096, 64, 65)])).contains("raw and has chunks"));
    assert!(text(forged(&body, &[raw(u64::MAX - 4095, u64::MAX, u64::MAX)])).contains(place));
    let mut page = vec![0; 4096 - 160 + 64];
    forged(&page, &[raw(4096, 64, 64)]).unwrap();
    page[9] = 1;
    assert!(text(forged(&page, &[raw(4096, 64, 64)])).contains("are not zero"));
}

#[test]
fn directories_that_lie_about_themselves_are_refused() {
    let good = directory::encode(&[section("a", b"x", 1, Compression::None)]);
    let open = |directory: &[u8]| text(open_bytes(&forge(b"x", &metadata(), directory), None));
    for len in 0..good.len() {
        assert!(open(&good[..len]).contains("directory ends too early"), "{len}");
    }
    assert!(open(&[&good[..], b"x"].concat()).contains("1 bytes too many"));
    assert!(open(&[0xff; 4]).contains("at most 65536"));
    assert!(open(&[0xff, 0, 0, 0]).contains("ends too early"));
    let mut many = good.clone();
    // A number of chunks that would take 150 GB of memory.
    let count = 4 + 2 + 1 + 1 + 24 + 4;
    many[count..count + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(open(&many).contains("number of its chunks"));
    many[24..32].copy_from_slice(&(u64::from(u32::MAX) << 20).to_le_bytes());
    assert!(open(&many).contains("ends too early") || open(&many).contains("impossible"));
    let mut unknown = good.clone();
    unknown[7] = 9;
    assert!(open(&unknown).contains("does not know"));
}

#[test]
fn compressed_chunks_cannot_become_more_than_they_say() {
    for compression in [Compression::Lz4, Compression::Zstd] {
        let content = vec![0; 1 << 20];
        let body = compression.compress(&content).unwrap().unwrap();
        let reader = forged(&body, &[section("a", &body, 1 << 20, compression)]).unwrap();
        assert!(reader.read("a", 1 << 20).unwrap() == content);
        for len in [(1 << 20) - 1, body.len() as u64 + 1] {
            let reader = forged(&body, &[section("a", &body, len, compression)]).unwrap();
            assert!(
                text(reader.read("a", 1 << 20)).contains("cannot be decompressed"),
                "{compression:?} {len}"
            );
        }
        // Too few bytes of content, and no content at all.
        let short = compression.compress(&content[..1000]).unwrap().unwrap();
        let reader = forged(&short, &[section("a", &short, 1 << 20, compression)]).unwrap();
        assert!(text(reader.read("a", 1 << 20)).contains("cannot be decompressed"));
        let reader = forged(b"junk", &[section("a", b"junk", 1 << 20, compression)]).unwrap();
        assert!(text(reader.read("a", 1 << 20)).contains("cannot be decompressed"));
        // Not shorter than the content: it was never compressed.
        assert!(
            text(forged(b"junk", &[section("a", b"junk", 4, compression)])).contains("impossible length")
        );
    }
    assert!(Compression::Zstd.decompress(b"", usize::MAX).is_err());
}

#[test]
fn metadata_that_is_none_is_refused() {
    let open = |text: &[u8]| open_bytes(&forge(b"", text, &directory::encode(&[])), None);
    for (bad, words) in [
        (&b""[..], "cannot be read"),
        (b"[]", "different generations"),
        (b"7", "cannot be read"),
        (b"{", "cannot be read"),
        (b"{}", "different generations"),
        (b"{\"processes\":-1}", "cannot be read"),
        (b"{\"generation\":\"x\"}", "cannot be read"),
        (b"{\"processes\":1,\"processes\":2}", "duplicate field"),
    ] {
        let error = text(open(bad));
        assert!(error.contains(words), "{error}");
    }
    let nested = format!("{{\"container_specs\":{{\"a\":{}{}}}}}", "[".repeat(100_000), "]".repeat(100_000));
    // A spec is kept as text: it is parsed, with a limit, by whoever wants to know what is in it.
    assert!(text(open(nested.as_bytes())).contains("different generations"));
    // What a later minor version adds does not matter.
    let mut later: serde_json::Value = serde_json::from_slice(&metadata()).unwrap();
    later["from_the_future"] = serde_json::json!({ "x": [1, 2, 3] });
    open(later.to_string().as_bytes()).unwrap();
}

#[test]
fn headers_that_point_elsewhere_are_refused() {
    let good = seed(Compression::None, None);
    let with = |at: usize, value: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        text(open_bytes(&bytes, None))
    };
    for at in [24, 32, 40, 48, 56] {
        for value in [0, 1, 159, 1 << 20, 1 << 40, u64::MAX] {
            let error = with(at, value);
            assert!(
                error.contains("do not follow") || error.contains("are allowed"),
                "{at} {value}: {error}"
            );
        }
    }
    assert!(with(40, (64 << 20) + 1).contains("67108864 are allowed"));
}
