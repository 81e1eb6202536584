//! Tests of writing and bringing back, with real processes.

use super::descriptor::{self, Purpose};
use super::testing::{Program, procfs, range};
use super::{
    Chain, Content, HUGE, Image, Index, Known, Like, Memory, Object, Options, PAGE, Place, Range, RunKind,
    Stats, SumKind, Target, Task, Writer, fill, fill_file, scan, wants_descriptor,
};
use crate::checkpoint::image::Compression;
use crate::checkpoint::remote::Tracee;
use airlock_wire::error::{Error, Kind};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

const MM: Object = Object::Memory(0);

fn pages_file() -> File {
    tempfile::tempfile().unwrap()
}

fn save(program: &Program, ranges: &[Range], options: Options) -> (File, Index, Stats) {
    let memory = program.memory();
    let runs = scan(&memory, ranges).unwrap();
    let mut writer = Writer::new(pages_file(), 0, options).unwrap();
    let task = Task { object: MM, content: Content::Memory(&memory, &runs), like: None, known: None };
    let stats = writer.add(&[task], None).unwrap();
    let (file, index) = writer.finish().unwrap();
    assert_eq!(file.metadata().unwrap().len(), index.data_len);
    // As it will be read.
    (file, Index::decode(&index.encode()).unwrap(), stats)
}

fn chain(file: File, index: Index) -> Chain {
    Chain::new(vec![Image { index, file, base: 0 }]).unwrap()
}

/// Fills a program that has the same mappings.
fn restore(
    chain: &Chain,
    object: Object,
    program: &Program,
    ranges: &[Range],
) -> Result<super::Filled, Error> {
    let layout = chain.layout(object)?;
    let mut tracee = Tracee::seize(program.pid())?;
    let uffd = if wants_descriptor(&layout, ranges) {
        descriptor::make(&mut tracee, Purpose::Fill, None)?
    } else {
        None
    };
    let memory = Memory::open(&procfs(), program.pid())?;
    let uffd = uffd.as_ref().map(AsFd::as_fd);
    fill(chain, &[Target { object, layout: &layout, memory: &memory, ranges, uffd }], 2, None)
}

/// A program with all kinds of pages, its ranges, and one that has the same mappings without content.
fn two_programs() -> Option<(Program, Program, Vec<Range>)> {
    let (mut a, mut b) = (Program::start()?, Program::start()?);
    // Where both have nothing.
    let at = 0x1000_0000_0000;
    for p in [&mut a, &mut b] {
        p.run(&format!("anon(3000, {at})"));
        p.run(&format!("anon(600, {at} + 8192 * P)"));
    }
    a.run(&format!("put({at}, 7, list(range(0, 2000)) + list(range(2001, 2100, 3)) + [2999])"));
    a.run(&format!("zero({at}, range(100, 110))"));
    a.run(&format!("put({at} + 8192 * P, 8, range(10, 500))"));
    // A part that the program itself cannot read.
    a.run(&format!("protect({at} + 8192 * P, 100, 0)"));
    Some((a, b, vec![range(at, 3000), range(at + 8192 * PAGE, 600)]))
}

fn same_content(a: &mut Program, b: &mut Program, ranges: &[Range]) {
    a.run(&format!("protect({}, 100, 1)", ranges[1].start));
    for r in ranges {
        assert_eq!(a.digest(r), b.digest(r));
    }
}

#[test]
fn what_is_saved_comes_back() {
    let Some((mut a, mut b, ranges)) = two_programs() else { return };
    let (file, index, stats) = save(&a, &ranges, Options::default());
    // 2000 + 33 + 1 pages, less 10 zeros, and 490.
    assert_eq!((stats.stored, stats.zero), (2024 + 490, 10));
    assert_eq!(index.totals().stored, stats.stored);
    assert_eq!(stats.bytes, stats.stored * PAGE);
    assert!(index.data_len < (stats.stored + 600) * PAGE);
    let chain = chain(file, index);
    assert_eq!(chain.verify(|_| ()).unwrap(), stats.stored);
    assert_eq!(restore(&chain, MM, &b, &ranges).unwrap().pages, stats.stored);
    same_content(&mut a, &mut b, &ranges);
}

#[test]
fn one_thread_and_many_make_images_of_the_same_content() {
    let Some((mut a, mut b, ranges)) = two_programs() else { return };
    for threads in [1, 3] {
        let options = Options { threads, sums: SumKind::Blake3, ..Options::default() };
        let (file, index, stats) = save(&a, &ranges, options);
        if threads == 1 {
            assert_eq!(index.data_len, stats.stored * PAGE, "one thread leaves no holes");
        }
        assert_eq!(chain(file, index).verify(|_| ()).unwrap(), stats.stored);
    }
    let (file, index, _) = save(&a, &ranges, Options { sums: SumKind::None, ..Options::default() });
    restore(&chain(file, index), MM, &b, &ranges).unwrap();
    same_content(&mut a, &mut b, &ranges);
}

#[test]
fn compressed_pages_come_back() {
    for compression in [Compression::Lz4, Compression::Zstd] {
        let Some((mut a, mut b, ranges)) = two_programs() else { return };
        let (file, index, stats) = save(&a, &ranges, Options { compression, ..Options::default() });
        assert!(stats.bytes < stats.stored * PAGE / 4, "{stats:?}");
        restore(&chain(file, index), MM, &b, &ranges).unwrap();
        same_content(&mut a, &mut b, &ranges);
    }
}

#[test]
fn random_pages_are_not_made_larger_by_compression() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(200);
    p.run(&format!("ctypes.memmove({}, os.urandom(200 * P), 200 * P)", r.start));
    let (file, index, stats) =
        save(&p, &[r], Options { compression: Compression::Lz4, ..Options::default() });
    assert_eq!(stats.bytes, 200 * PAGE);
    assert_eq!(chain(file, index).verify(|_| ()).unwrap(), 200);
}

#[test]
fn direct_writes_give_the_same() {
    let Some((mut a, mut b, ranges)) = two_programs() else { return };
    let (file, index, _) = save(&a, &ranges, Options { direct: true, ..Options::default() });
    let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFL).unwrap();
    assert_eq!(flags & libc::O_DIRECT, 0, "the caller's descriptor is as it was");
    restore(&chain(file, index), MM, &b, &ranges).unwrap();
    same_content(&mut a, &mut b, &ranges);
}

#[test]
fn page_data_may_begin_anywhere_in_a_file() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(10);
    p.run(&format!("put({}, 1, range(10))", r.start));
    let (memory, file) = (p.memory(), pages_file());
    file.write_all_at(b"the statefile's own", 0).unwrap();
    let runs = scan(&memory, &[r]).unwrap();
    let mut writer = Writer::new(file, 3 * PAGE, Options::default()).unwrap();
    writer
        .add(&[Task { object: MM, content: Content::Memory(&memory, &runs), like: None, known: None }], None)
        .unwrap();
    let (file, index) = writer.finish().unwrap();
    let mut head = [0; 19];
    file.read_exact_at(&mut head, 0).unwrap();
    assert_eq!(&head, b"the statefile's own");
    let chain = Chain::new(vec![Image { index, file, base: 3 * PAGE }]).unwrap();
    assert_eq!(chain.verify(|_| ()).unwrap(), 10);
}

#[test]
fn huge_pages_come_back_as_such() {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if enabled.is_empty() || enabled.contains("[never]") {
        eprintln!("skipped: the kernel has no transparent huge pages");
        return;
    }
    let (Some(mut a), Some(mut b)) = (Program::start(), Program::start()) else { return };
    let at = 0x1000_0000_0000;
    for p in [&mut a, &mut b] {
        p.run(&format!("anon(2048, {at}); advise({at}, 2048, 14)"));
    }
    // Two huge pages, and some small ones elsewhere.
    a.run(&format!("put({at}, 3, range(1024)); advise({at} + 1024 * P, 512, 15)"));
    a.run(&format!("put({at} + 1024 * P, 3, [5, 6, 7]); advise({at} + 1024 * P, 512, 14)"));
    let ranges = [Range { huge: true, ..range(at, 2048) }];
    let (file, index, stats) = save(&a, &ranges, Options::default());
    assert_eq!((stats.stored, index.totals().huge), (1027, 1024));
    let filled = restore(&chain(file, index), MM, &b, &ranges).unwrap();
    assert_eq!(filled.huge, 1024);
    let runs = scan(&b.memory(), &ranges).unwrap();
    let marks: Vec<_> = runs.iter().map(|r| ((r.start - at) / PAGE, r.pages, r.huge)).collect();
    // A page that the kernel could not make huge (fragmented memory) is no defect of ours.
    assert!(marks == [(0, 1024, true), (1029, 3, false)] || marks[0].1 >= 1024, "{marks:?}");
    assert!(marks.iter().map(|m| m.1).sum::<u64>() <= 1024 + HUGE / PAGE, "{marks:?}");
    assert_eq!(a.digest(&ranges[0]), b.digest(&ranges[0]));
}

#[test]
fn zeros_over_a_file_come_back_as_zeros() {
    let (Some(mut a), Some(mut b)) = (Program::start(), Program::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7u8; 8 * PAGE as usize]).unwrap();
    let at = 0x1000_0000_0000u64;
    for p in [&mut a, &mut b] {
        p.run(&format!("filemap({:?}, 8, {at})", path.to_str().unwrap()));
    }
    a.run(&format!("zero({at}, [1, 2]); put({at}, 1, [5])"));
    let ranges = [Range { backed: true, ..range(at, 8) }];
    let (file, index, stats) = save(&a, &ranges, Options::default());
    assert_eq!((stats.stored, stats.zero, index.totals().zero), (1, 2, 2));
    // The program cannot write there when its pages come.
    b.run(&format!("protect({at}, 8, 1)"));
    restore(&chain(file, index), MM, &b, &ranges).unwrap();
    assert_eq!(a.digest(&ranges[0]), b.digest(&ranges[0]));
}

#[test]
fn what_processes_share_since_a_fork_is_stored_once() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(500);
    p.run(&format!("put({}, 1, range(400))", r.start));
    // The child changes some, and makes new ones; then it waits until its parent ends.
    let child = format!(
        "rd, wr = os.pipe(); r = os.fork(); \
         r or (put({0}, 2, range(50, 60)), put({0}, 2, [450]), zero({0}, [70]), os.write(wr, b'x'), libc.prctl(1, 9), \
         os.close(wr), os.read(0, 1)); os.read(rd, 1)",
        r.start
    );
    let child: i32 = p.run(&child).parse().unwrap();
    let (parent, forked) = (p.memory(), Memory::open(&procfs(), child).unwrap());
    let runs = [scan(&parent, &[r]).unwrap(), scan(&forked, &[r]).unwrap()];
    let mut writer = Writer::new(pages_file(), 0, Options { threads: 2, ..Options::default() }).unwrap();
    let like = Like { object: MM, memory: &parent, runs: &runs[0] };
    let other = Object::Memory(1);
    let tasks = [
        Task { object: MM, content: Content::Memory(&parent, &runs[0]), like: None, known: None },
        Task { object: other, content: Content::Memory(&forked, &runs[1]), like: Some(like), known: None },
    ];
    let stats = writer.add(&tasks, None).unwrap();
    assert_eq!((stats.stored, stats.like, stats.zero), (411, 389, 1));
    let (file, index) = writer.finish().unwrap();
    let chain = chain(file, Index::decode(&index.encode()).unwrap());
    let layout = chain.layout(other).unwrap();
    assert_eq!(layout.pages(), 400);
    let Some(mut q) = Program::start() else { return };
    q.run(&format!("anon(500, {})", r.start));
    restore(&chain, other, &q, &[r]).unwrap();
    let start = r.start;
    assert_eq!(q.run(&format!("r = same({start}, 1, [*range(50), *range(60, 70), *range(71, 400)])")), "[]");
    assert_eq!(q.run(&format!("r = same({start}, 2, [*range(50, 60), 450])")), "[]");
    assert_eq!(q.run(&format!("r = any(ctypes.string_at({start} + 70 * P, P))")), "False");
}

#[test]
fn an_image_upon_another_has_only_what_changed() {
    let (Some(mut a), Some(mut b)) = (Program::start(), Program::start()) else { return };
    let at = 0x1000_0000_0000u64;
    let ranges = [range(at, 1000)];
    a.run(&format!("anon(1000, {at}); put({at}, 1, range(800))"));
    let (file, index, _) = save(&a, &ranges, Options { id: [1; 16], ..Options::default() });
    let mut images = vec![Image { index, file, base: 0 }];
    for round in 2..4u8 {
        // Changed, given up, made anew, and once overwritten with what was there.
        a.run(&format!("put({at}, {round}, range(10 * {round}, 10 * {round} + 5)); put({at}, 1, [600])"));
        a.run(&format!("advise({at} + {} * P, 7, 4)", 700 + 10 * u64::from(round)));
        a.run(&format!("put({at}, {round}, [900 + {round}])"));
        let parents = Chain::new(images).unwrap();
        let layout = parents.layout(MM).unwrap();
        let known = Known { object: MM, layout: &layout, chain: &parents, compare: true };
        let memory = a.memory();
        let runs = scan(&memory, &ranges).unwrap();
        let mut writer =
            Writer::new(pages_file(), 0, Options { id: [round; 16], ..Options::default() }).unwrap();
        writer.set_parent([round - 1; 16]);
        let content = Content::Memory(&memory, &runs);
        let stats =
            writer.add(&[Task { object: MM, content, like: None, known: Some(known) }], None).unwrap();
        assert_eq!(stats.stored, 6, "round {round}: {stats:?}");
        let (file, index) = writer.finish().unwrap();
        let index = Index::decode(&index.encode()).unwrap();
        images = parents.into_images();
        images.insert(0, Image { index, file, base: 0 });
    }
    let chain = Chain::new(images).unwrap();
    b.run(&format!("anon(1000, {at})"));
    restore(&chain, MM, &b, &ranges).unwrap();
    assert_eq!(a.digest(&ranges[0]), b.digest(&ranges[0]));

    // Images in the wrong order, of another image, or missing, are refused.
    let mut images = chain.into_images();
    images.remove(1);
    assert!(Chain::new(images).unwrap_err().message.contains("not the one that the image was made upon"));
}

#[test]
fn pages_reported_unchanged_are_not_read() {
    let Some(mut a) = Program::start() else { return };
    let r = a.anon(100);
    a.run(&format!("put({}, 1, range(50))", r.start));
    let (file, index, _) = save(&a, &[r], Options { id: [1; 16], ..Options::default() });
    let parents = chain(file, index);
    let layout = parents.layout(MM).unwrap();
    let memory = a.memory();
    let mut runs = scan(&memory, &[r]).unwrap();
    runs.iter_mut().for_each(|r| r.kind = RunKind::Unchanged);
    // What this says of the program is not true any more, and nobody looks.
    a.run(&format!("put({}, 2, range(50))", r.start));
    let mut writer = Writer::new(pages_file(), 0, Options::default()).unwrap();
    writer.set_parent([1; 16]);
    let known = Known { object: MM, layout: &layout, chain: &parents, compare: false };
    let content = Content::Memory(&memory, &runs);
    let stats = writer.add(&[Task { object: MM, content, like: None, known: Some(known) }], None).unwrap();
    assert_eq!((stats.parent, stats.stored), (50, 0));
    let (_, index) = writer.finish().unwrap();
    assert!(index.entries(MM).iter().all(|e| e.place == Place::Parent(MM)));
}

#[test]
fn files_come_back_with_their_holes() {
    let file = pages_file();
    file.write_all_at(&[1; 5000], 0).unwrap();
    file.write_all_at(&[2; 100], 900_000).unwrap();
    let len = 900_100;
    let mut writer = Writer::new(pages_file(), 0, Options::default()).unwrap();
    let object = Object::Shared(2);
    let task = Task { object, content: Content::File(file.as_fd(), len), like: None, known: None };
    let stats = writer.add(&[task], None).unwrap();
    assert_eq!(stats.stored, 3);
    let (pages, index) = writer.finish().unwrap();
    let chain = chain(pages, index);
    let to = pages_file();
    to.set_len(len).unwrap();
    fill_file(&chain, object, to.as_fd(), len, 0, None).unwrap();
    let read = |f: &File| {
        let mut bytes = vec![0; len as usize];
        f.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert_eq!(to.metadata().unwrap().len(), len);
    assert!(read(&to) == read(&file));
    let e = fill_file(&chain, object, to.as_fd(), 10, 0, None).unwrap_err();
    assert_eq!(e.kind, Kind::Serde);
}

#[test]
fn damage_is_named() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(100);
    p.run(&format!("put({}, 1, range(100))", r.start));
    for sums in [SumKind::Xxh3, SumKind::Blake3] {
        let (file, index, _) = save(&p, &[r], Options { sums, ..Options::default() });
        // Shorter than the index says.
        file.set_len(50 * PAGE + 7).unwrap();
        let short = Image { index: index.clone(), file: file.try_clone().unwrap(), base: 0 };
        let e = Chain::new(vec![short]).unwrap_err();
        assert!(e.message.contains("cut at offset 204807"), "{e}");
        // Cut later: the pages are zeros, or not there.
        file.set_len(100 * PAGE).unwrap();
        let chain = chain(file, index);
        let e = chain.verify(|_| ()).unwrap_err();
        let page = r.start + 50 * PAGE;
        assert!(
            e.message.contains("damaged at offset 204800") && e.message.contains(&format!("{page:#x}")),
            "{e}"
        );
        chain.images()[0].file.set_len(10 * PAGE).unwrap();
        let Some(mut q) = Program::start() else { return };
        q.run(&format!("anon(100, {})", r.start));
        let e = restore(&chain, MM, &q, &[r]).unwrap_err();
        assert!(e.message.contains("ends at offset 40960"), "{e}");
    }
}

#[test]
fn a_changed_bit_of_page_data_is_noticed() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let Some(mut p) = Program::start() else { return };
        let r = p.anon(70);
        // It can be compressed, and nothing in it is like anything else.
        p.run(&format!("ctypes.memmove({}, os.urandom(35 * P).hex().encode(), 70 * P)", r.start));
        let (file, index, _) = save(&p, &[r], Options { compression, ..Options::default() });
        let chain = chain(file, index);
        let mut byte = [0];
        let file = &chain.images()[0].file;
        file.read_exact_at(&mut byte, 30).unwrap();
        file.write_all_at(&[byte[0] ^ 4], 30).unwrap();
        let e = chain.verify(|_| ()).unwrap_err();
        assert_eq!(e.kind, Kind::Serde, "{e}");
        assert!(e.message.contains("offset 0"), "{e}");
    }
}

#[test]
fn a_full_disk_is_named() {
    use crate::sys::mount;
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::Mode;
    // A filesystem that is mounted nowhere.
    let small = mount::fsopen("tmpfs").and_then(|fs| {
        mount::fsconfig_string(fs.as_fd(), "size", "256k")?;
        mount::fsconfig_create(fs.as_fd())?;
        mount::fsmount(fs.as_fd(), 0)
    });
    let Ok(small) = small else {
        eprintln!("skipped: needs root to make a filesystem");
        return;
    };
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let file = File::from(openat(&small, "pages", flags, Mode::from_bits_truncate(0o600)).unwrap());
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(1200);
    p.run(&format!("put({}, 1, range(1200))", r.start));
    let memory = p.memory();
    let runs = scan(&memory, &[r]).unwrap();
    let mut writer = Writer::new(file, 0, Options::default()).unwrap();
    let task = Task { object: MM, content: Content::Memory(&memory, &runs), like: None, known: None };
    let e = writer.add(&[task], None).unwrap_err();
    assert!(e.message.contains("No space left on device") && e.message.contains("at offset"), "{e}");
}

#[test]
fn a_process_that_dies_meanwhile_is_named() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(100);
    p.run(&format!("put({}, 1, range(100))", r.start));
    let memory = p.memory();
    let runs = scan(&memory, &[r]).unwrap();
    let pid = p.pid();
    drop(p);
    let mut writer = Writer::new(pages_file(), 0, Options::default()).unwrap();
    let task = Task { object: MM, content: Content::Memory(&memory, &runs), like: None, known: None };
    let e = writer.add(&[task], None).unwrap_err();
    assert!(e.message.contains(&pid.to_string()) && e.message.contains("address space 0"), "{e}");
}

#[test]
fn wrong_use_is_refused() {
    let file = pages_file();
    assert_eq!(Writer::new(pages_file(), 5, Options::default()).unwrap_err().kind, Kind::InvalidArgument);
    let mut writer = Writer::new(pages_file(), 0, Options::default()).unwrap();
    let task = Task { object: MM, content: Content::File(file.as_fd(), 0), like: None, known: None };
    assert!(writer.add(&[task, task], None).unwrap_err().message.contains("twice"));
    writer.add(&[task], None).unwrap();
    assert!(writer.add(&[task], None).unwrap_err().message.contains("twice"));
    let (file, index) = writer.finish().unwrap();
    assert!(index.contains(MM) && index.entries(MM).is_empty() && index.data_len == 0);
    let mut index = index;
    index.parent = Some([1; 16]);
    let e = Chain::new(vec![Image { index, file, base: 0 }]).unwrap_err();
    assert!(e.message.contains("which was not given"), "{e}");
}
