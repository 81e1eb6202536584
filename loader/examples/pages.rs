//! Measures the page engine: `cargo run --release -p airlock-loader --example pages -- [MB] [huge] [DIR]`.
//!
//! Saves and restores the memory of a python3 that holds so much random data, images in DIR (default `/dev/shm`), and
//! compares with `cp` of the same file there. Rates are medians of five, interleaved.

use airlock_loader::checkpoint::pages::descriptor::{self, Purpose};
use airlock_loader::checkpoint::pages::{
    Chain, Content, Image, Memory, Object, Options, Range, SumKind, Target, Task, Writer, fill, scan,
};
use airlock_loader::checkpoint::remote::Tracee;
use airlock_loader::procfs::ProcFs;
use std::fs::File;
use std::io::{BufRead, BufReader};
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
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        let start: u64 = line.trim().parse()?;
        Ok(Self { child, range: Range { start, end: start + size, huge, ..Range::default() } })
    }
    fn pid(&self) -> i32 {
        self.child.id() as i32
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

fn main() -> Any<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mb: u64 = args.iter().find_map(|a| a.parse().ok()).unwrap_or(256);
    let huge = args.iter().any(|a| a == "huge");
    let dir = args.iter().find(|a| a.starts_with('/')).map_or("/dev/shm", String::as_str).to_owned();
    let direct = args.iter().any(|a| a == "direct");
    let sums = if args.iter().any(|a| a == "blake3") { SumKind::Blake3 } else { SumKind::Xxh3 };
    let threads = args.iter().find_map(|a| a.strip_prefix("t")?.parse().ok()).unwrap_or(0);
    let size = mb << 20;
    let procfs = ProcFs::new(File::open("/proc")?.into());
    let source = Holder::start(size, huge, true)?;
    let memory = Memory::open(&procfs, source.pid())?;
    let path = format!("{dir}/airlock-pages-bench.img");
    let copy = format!("{path}.copy");
    let (mut dump, mut scanning, mut restore, mut cp) = (vec![], vec![], vec![], vec![]);
    for _ in 0..5 {
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_file(&copy);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let begin = Instant::now();
        let runs = scan(&memory, &[source.range])?;
        scanning.push(begin.elapsed().as_secs_f64());
        let mut writer = Writer::new(file, 0, Options { threads, sums, direct, ..Options::default() })?;
        let object = Object::Memory(0);
        let task = Task { object, content: Content::Memory(&memory, &runs), like: None, known: None };
        let stats = writer.add(&[task], None)?;
        let (file, index) = writer.finish()?;
        dump.push(begin.elapsed().as_secs_f64());
        assert_eq!(stats.stored, size / 4096);
        let index_size = index.encode().len();

        let begin = Instant::now();
        Command::new("cp").args([&path, &copy]).status()?;
        cp.push(begin.elapsed().as_secs_f64());

        let empty = Holder::start(size, huge, false)?;
        let mut tracee = Tracee::seize(empty.pid())?;
        let uffd = descriptor::make(&mut tracee, Purpose::Fill, None)?;
        let begin = Instant::now();
        let mut index = index;
        // The other process has its memory elsewhere.
        let shift = empty.range.start.wrapping_sub(source.range.start);
        for (_, entries) in &mut index.objects {
            entries.iter_mut().for_each(|e| e.start = e.start.wrapping_add(shift));
        }
        let chain = Chain::new(vec![Image { index, file, base: 0 }])?;
        let layout = chain.layout(object)?;
        let to = Memory::open(&procfs, empty.pid())?;
        let ranges = [empty.range];
        let target = Target {
            object,
            layout: &layout,
            memory: &to,
            ranges: &ranges,
            uffd: uffd.as_ref().map(AsFd::as_fd),
        };
        let filled = fill(&chain, &[target], threads, None)?;
        restore.push(begin.elapsed().as_secs_f64());
        assert_eq!(filled.pages, size / 4096);
        drop(uffd);
        drop(tracee);
        let anon = procfs.read(empty.pid(), "smaps_rollup")?;
        let anon = anon.lines().find(|l| l.starts_with("AnonHuge")).unwrap_or_default().to_owned();
        println!(
            "  pieces {} index {index_size} bytes, huge {} pages, {anon}",
            layout.pieces().len(),
            filled.huge
        );
    }
    let rate = |t: f64| size as f64 / t / 1e9;
    let (dump, restore, cp) = (median(dump), median(restore), median(cp));
    println!("{mb} MB {} in {dir}", if huge { "huge" } else { "small" });
    println!("scan    {:8.2} ms", median(scanning) * 1e3);
    println!("dump    {:8.2} ms {:6.2} GB/s  {:.2} x cp", dump * 1e3, rate(dump), cp / dump);
    println!("cp      {:8.2} ms {:6.2} GB/s", cp * 1e3, rate(cp));
    println!("restore {:8.2} ms {:6.2} GB/s  {:.2} x cp", restore * 1e3, rate(restore), cp / restore);
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_file(&copy);
    Ok(())
}
