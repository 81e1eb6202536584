//! Measures the page engine: `cargo run --release -p airlock-loader --example pages -- [MB] [huge] [DIR] [WORD…]`.
//!
//! The memory is that of a python3 that holds so much random data (default 256); images are in DIR (default `/dev/shm`).
//! Words choose what is measured (default all): `copy` saves and restores, and compares with `cp` of the same file there,
//! interleaved; `pause` makes shadows; `background`; `incremental`. `cold` (pages not in the cache), `direct`, `lz4`, `blake3`, `nosums` and `t1` (threads)
//! vary it. All figures are medians of five or nine.

use airlock_loader::checkpoint::image::Compression;
use airlock_loader::checkpoint::pages::background::{self, Monitor, Waiting};
use airlock_loader::checkpoint::pages::descriptor::{self, Purpose};
use airlock_loader::checkpoint::pages::shadow::Shadow;
use airlock_loader::checkpoint::pages::track::{Tracker, scan_since};
use airlock_loader::checkpoint::pages::{
    Chain, Content, Image, Index, Known, Layout, Memory, Object, Options, Range, Run, Stats, SumKind, Target,
    Task, Writer, fill, scan,
};
use airlock_loader::checkpoint::remote::{Region, Tracee};
use airlock_loader::procfs::ProcFs;
use nix::sys::time::TimeValLike;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

type Any<T> = Result<T, Box<dyn std::error::Error>>;

const HOLDER: &str = r#"
import ctypes, mmap, os, sys
size, huge, full = int(sys.argv[1]), sys.argv[2] == "huge", sys.argv[3] == "full"
m = mmap.mmap(-1, size + (4 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
base = ctypes.addressof(ctypes.c_char.from_buffer(m))
skip = -base % (2 << 20)
if full:
    for at in range(0, size, 1 << 20):
        m[skip + at:skip + at + (1 << 20)] = os.urandom(1 << 20)
print(base + skip, flush=True)
for line in sys.stdin:
    n, step = map(int, line.split())
    for i in range(n):
        m[skip + i * step * 4096] = (m[skip + i * step * 4096] + 1) % 256
    print("ok", flush=True)
"#;

struct Holder {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    range: Range,
}

impl Holder {
    fn start(size: u64, huge: bool, full: bool) -> Any<Self> {
        let words = [
            size.to_string(),
            if huge { "huge" } else { "small" }.into(),
            if full { "full" } else { "empty" }.into(),
        ];
        let mut child = Command::new("python3")
            .args(["-c", HOLDER])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
        output.read_line(&mut line)?;
        let start: u64 = line.trim().parse()?;
        Ok(Self { child, output, range: Range { start, end: start + size, huge, ..Range::default() } })
    }
    fn pid(&self) -> i32 {
        self.child.id() as i32
    }
    /// Writes to `n` pages, each `step` pages further on.
    fn touch(&mut self, n: u64, step: u64) -> Any<()> {
        writeln!(self.child.stdin.as_mut().ok_or("no input")?, "{n} {step}")?;
        self.output.read_line(&mut String::new())?;
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn cpu() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    usage.map_or(0.0, |u| (u.user_time() + u.system_time()).num_microseconds() as f64 / 1e6)
}

const OBJECT: Object = Object::Memory(0);

struct Bench {
    procfs: ProcFs,
    size: u64,
    huge: bool,
    options: Options,
    path: String,
    cold: bool,
}

impl Bench {
    fn file(&self) -> Any<File> {
        let _ = std::fs::remove_file(&self.path);
        Ok(File::options().read(true).write(true).create(true).truncate(true).open(&self.path)?)
    }

    fn save(
        &self,
        memory: &Memory,
        runs: &[Run],
        known: Option<(&Chain, &Layout)>,
        file: File,
    ) -> Any<(File, Index, Stats)> {
        let mut writer = Writer::new(file, 0, self.options)?;
        let known = known.map(|(chain, layout)| Known { object: OBJECT, layout, chain, compare: false });
        if let Some(known) = known {
            writer.set_parent(known.chain.images()[0].index.id);
        }
        let task = Task { object: OBJECT, content: Content::Memory(memory, runs), like: None, known };
        let stats = writer.add(&[task], None)?;
        let (file, index) = writer.finish()?;
        Ok((file, index, stats))
    }

    /// Out of the page cache with it.
    fn cool(&self, file: &File) -> Any<()> {
        if self.cold {
            file.sync_all()?;
            nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        Ok(())
    }

    /// The other process has its memory elsewhere.
    fn moved(mut index: Index, by: u64) -> Index {
        for (_, entries) in &mut index.objects {
            entries.iter_mut().for_each(|e| e.start = e.start.wrapping_add(by));
        }
        index
    }

    fn copy(&self, source: &Holder, memory: &Memory) -> Any<()> {
        let copy = format!("{}.copy", self.path);
        let (mut dump, mut scanning, mut restore, mut cp) = (vec![], vec![], vec![], vec![]);
        let (mut dump_cpu, mut restore_cpu) = (vec![], vec![]);
        for _ in 0..5 {
            let _ = std::fs::remove_file(&copy);
            let file = self.file()?;
            let (begin, used) = (Instant::now(), cpu());
            let runs = scan(memory, &[source.range])?;
            scanning.push(begin.elapsed().as_secs_f64());
            let (file, index, stats) = self.save(memory, &runs, None, file)?;
            dump.push(begin.elapsed().as_secs_f64());
            dump_cpu.push(cpu() - used);
            assert_eq!(stats.stored, self.size / 4096);

            self.cool(&file)?;
            let begin = Instant::now();
            Command::new("cp").args([&self.path, &copy]).status()?;
            cp.push(begin.elapsed().as_secs_f64());

            let empty = Holder::start(self.size, self.huge, false)?;
            let mut tracee = Tracee::seize(empty.pid())?;
            let uffd = descriptor::make(&mut tracee, Purpose::Fill, None)?;
            self.cool(&file)?;
            let index = Self::moved(index, empty.range.start.wrapping_sub(source.range.start));
            let (begin, used) = (Instant::now(), cpu());
            let chain = Chain::new(vec![Image { index, file, base: 0 }])?;
            let layout = chain.layout(OBJECT)?;
            let to = Memory::open(&self.procfs, empty.pid())?;
            let uffd = uffd.as_ref().map(AsFd::as_fd);
            let target =
                Target { object: OBJECT, layout: &layout, memory: &to, ranges: &[empty.range], uffd };
            let filled = fill(&chain, &[target], self.options.threads, None)?;
            restore.push(begin.elapsed().as_secs_f64());
            restore_cpu.push(cpu() - used);
            assert_eq!(filled.pages, self.size / 4096);
            drop(tracee);
        }
        let _ = std::fs::remove_file(&copy);
        let (dump, restore, cp) = (median(dump), median(restore), median(cp));
        let rate = |t: f64| self.size as f64 / t / 1e9;
        println!("scan    {:8.2} ms", median(scanning) * 1e3);
        println!(
            "dump    {:8.2} ms {:6.2} GB/s  {:.2} x cp, cpu {:.0} ms",
            dump * 1e3,
            rate(dump),
            cp / dump,
            median(dump_cpu) * 1e3
        );
        println!("cp      {:8.2} ms {:6.2} GB/s", cp * 1e3, rate(cp));
        println!(
            "restore {:8.2} ms {:6.2} GB/s  {:.2} x cp, cpu {:.0} ms",
            restore * 1e3,
            rate(restore),
            cp / restore,
            median(restore_cpu) * 1e3
        );
        Ok(())
    }

    /// How long a program stands still for a shadow.
    fn pause(&self, source: &Holder) -> Any<()> {
        let (mut pause, mut made, mut end) = (vec![], vec![], vec![]);
        for _ in 0..9 {
            let begin = Instant::now();
            let mut tracee = Tracee::seize(source.pid())?;
            let region = Region::map(&mut tracee, None)?;
            let making = Instant::now();
            let shadow = Shadow::make(&self.procfs, &mut tracee, &region, &[])?.ok_or("no shadow")?;
            made.push(making.elapsed().as_secs_f64());
            region.unmap(&mut tracee)?;
            tracee.detach(0)?;
            pause.push(begin.elapsed().as_secs_f64());
            let begin = Instant::now();
            shadow.end(&self.procfs, None)?;
            end.push(begin.elapsed().as_secs_f64());
        }
        let (pause, made, end) = (median(pause), median(made), median(end));
        println!(
            "pause   {:8.2} ms, of which the shadow {:.2} ms; its end {:.2} ms",
            pause * 1e3,
            made * 1e3,
            end * 1e3
        );
        Ok(())
    }

    fn incremental(&self, source: &mut Holder, memory: &Memory) -> Any<()> {
        let mut tracee = Tracee::seize(source.pid())?;
        let tracker = descriptor::make(&mut tracee, Purpose::Writes, None)?.ok_or("no tracking")?;
        let tracker = Tracker::new(tracker);
        let runs = scan(memory, &[source.range])?;
        let (file, index, stats) = self.save(memory, &runs, None, self.file()?)?;
        let begin = Instant::now();
        tracker.arm(memory, &[source.range])?;
        println!("arm     {:8.2} ms", begin.elapsed().as_secs_f64() * 1e3);
        tracee.detach(0)?;
        let full = stats.bytes + index.encode().len() as u64;
        let chain = Chain::new(vec![Image { index, file, base: 0 }])?;
        let (mut all, mut scans, mut sizes) = (vec![], vec![], vec![]);
        for _ in 0..5 {
            let pages = self.size / 4096;
            source.touch(pages / 100, 97)?;
            let file = self.file()?;
            let begin = Instant::now();
            let tracee = Tracee::seize(source.pid())?;
            let layout = chain.layout(OBJECT)?;
            let runs = scan_since(memory, &[source.range])?;
            scans.push(begin.elapsed().as_secs_f64());
            let (_, index, stats) = self.save(memory, &runs, Some((&chain, &layout)), file)?;
            tracker.arm(memory, &[source.range])?;
            let index = index.encode();
            all.push(begin.elapsed().as_secs_f64());
            sizes.push((stats.bytes as f64 + index.len() as f64) / full as f64);
            tracee.detach(0)?;
        }
        println!(
            "incremental, 1 % written: {:.2} ms, of which looking {:.2} ms; {:.2} % of the full image",
            median(all) * 1e3,
            median(scans) * 1e3,
            median(sizes) * 100.0
        );
        Ok(())
    }

    fn background(&self, source: &Holder, memory: &Memory) -> Any<()> {
        let (mut start, mut all) = (vec![], vec![]);
        for _ in 0..5 {
            let runs = scan(memory, &[source.range])?;
            let (file, index, _) = self.save(memory, &runs, None, self.file()?)?;
            let empty = Holder::start(self.size, self.huge, false)?;
            let index = Self::moved(index, empty.range.start.wrapping_sub(source.range.start)).encode();
            let mut tracee = Tracee::seize(empty.pid())?;
            let begin = Instant::now();
            let uffd = descriptor::make(&mut tracee, Purpose::Faults, None)?.ok_or("no userfaultfd")?;
            let chain = Chain::new(vec![Image { index: Index::decode(&index)?, file, base: 0 }])?;
            let layout = chain.layout(OBJECT)?;
            let waiting =
                Waiting { object: OBJECT, pid: empty.pid(), uffd, layout, ranges: vec![empty.range] };
            let options = background::Options { threads: self.options.threads, ..Default::default() };
            let monitor = Monitor::start(chain, vec![waiting], options)?;
            tracee.detach(0)?;
            start.push(begin.elapsed().as_secs_f64());
            monitor.wait(None)?;
            all.push(begin.elapsed().as_secs_f64());
        }
        let all = median(all);
        println!(
            "background: runs after {:.2} ms, all in after {:.2} ms, {:.2} GB/s",
            median(start) * 1e3,
            all * 1e3,
            self.size as f64 / all / 1e9
        );
        Ok(())
    }
}

fn main() -> Any<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| args.iter().any(|a| a == word);
    let mb: u64 = args.iter().find_map(|a| a.parse().ok()).unwrap_or(256);
    let dir = args.iter().find(|a| a.starts_with('/')).map_or("/dev/shm", String::as_str);
    let options = Options {
        threads: args.iter().find_map(|a| a.strip_prefix("t")?.parse().ok()).unwrap_or(0),
        sums: if has("blake3") {
            SumKind::Blake3
        } else if has("nosums") {
            SumKind::None
        } else {
            SumKind::Xxh3
        },
        direct: has("direct"),
        compression: if has("lz4") { Compression::Lz4 } else { Compression::None },
        id: [1; 16],
    };
    let procfs = ProcFs::new(File::open("/proc")?.into());
    let path = format!("{dir}/airlock-pages-bench.img");
    let bench = Bench { procfs, size: mb << 20, huge: has("huge"), options, path, cold: has("cold") };
    let mut source = Holder::start(bench.size, bench.huge, true)?;
    let memory = Memory::open(&bench.procfs, source.pid())?;
    println!(
        "{mb} MB in {} pages, images in {dir}, load {}",
        if bench.huge { "huge" } else { "small" },
        std::fs::read_to_string("/proc/loadavg")?.trim()
    );
    let some = ["copy", "pause", "incremental", "background"].iter().any(|w| has(w));
    if has("copy") || !some {
        bench.copy(&source, &memory)?;
    }
    if has("pause") || !some {
        bench.pause(&source)?;
    }
    if has("background") || !some {
        bench.background(&source, &memory)?;
    }
    if has("incremental") || !some {
        bench.incremental(&mut source, &memory)?;
    }
    let _ = std::fs::remove_file(&bench.path);
    Ok(())
}
