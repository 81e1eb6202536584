//! Writing the image: pages, contents of filesystems, state, metadata; in this order, so that whatever is missing at
//! the end is missed by its absence.
#![forbid(unsafe_code)]

use super::context::{Context, Extent};
use super::early::{self, Changed};
use super::fs::Filesystems;
use crate::checkpoint::agent::{Link, next_fd};
use crate::checkpoint::image::{
    self, Compression, ContainerName, FileIdentity, Metadata, PagesIn, PagesInfo, Reader, SpecText, Sums,
    WriterOptions,
};
use crate::checkpoint::order::{DumpOrder, Event, Report, Tracked};
use crate::checkpoint::pages::descriptor::{self, Purpose};
use crate::checkpoint::pages::shadow::{Apart, Shadow};
use crate::checkpoint::pages::track::Tracker;
use crate::checkpoint::pages::{
    self, Chain, Content, Index, Known, Layout, Like, Memory, Object, Range, Run, RunKind, SumKind, Task,
};
use crate::checkpoint::restore::source::whole;
use crate::checkpoint::state::{MmState, SandboxState, ShmemState, Vma};
use crate::checkpoint::watch::Watch;
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

/// Where the image goes.
#[derive(Debug)]
pub(super) struct Output {
    statefile: File,
    /// Page index and pages, unless they go into the statefile.
    pages: Option<(File, File)>,
    parent: Option<Parent>,
}

/// The image that this one builds upon.
#[derive(Debug)]
struct Parent {
    /// It and those that it builds upon, as this image's metadata names them.
    ancestry: Vec<image::Parent>,
    state: SandboxState,
    chain: Chain,
}

impl Parent {
    fn open(order: &DumpOrder, fds: &mut std::vec::IntoIter<OwnedFd>) -> Result<Self> {
        const PART_MAX: u64 = 1 << 30;
        let failed = |e: Error| e.context("opening the parent image");
        let statefile = File::from(next_fd(fds, "parent's statefile")?);
        let reader = Reader::open(statefile, order.key.as_deref()).map_err(|e| failed(e.into()))?;
        let state = reader.read_json(image::SECTION_STATE, PART_MAX).map_err(|e| failed(e.into()))?;
        let (mut images, mut indexes) = (Vec::new(), Vec::new());
        let mut ancestry =
            vec![image::Parent { generation: reader.generation(), ..image::Parent::default() }];
        ancestry.extend(reader.metadata().parents.iter().cloned());
        for place in 0..=order.ancestors as usize {
            let meta = File::from(next_fd(fds, "parent's pages metadata file")?);
            let file = File::from(next_fd(fds, "parent's pages file")?);
            let bytes = whole(&meta, "the parent's pages metadata file")?;
            if let Some(parent) = ancestry.get_mut(place) {
                parent.index = FileIdentity::of_bytes(&bytes);
            }
            images.push(pages::Image { index: Index::decode(&bytes)?, file, base: 0 });
            indexes.push(bytes);
        }
        let indexes: Vec<&[u8]> = indexes.iter().map(Vec::as_slice).collect();
        let own = indexes.first().copied().unwrap_or_default();
        reader
            .check_index(own)
            .and_then(|()| reader.check_parents(indexes.get(1..).unwrap_or_default()))
            .map_err(|e| failed(e.into()))?;
        Ok(Self { ancestry, state, chain: Chain::new(images).map_err(failed)? })
    }

    /// The address space in the parent image of the process that is `process` now, by its pid and start.
    fn space(&self, state: &SandboxState, proc: usize) -> Option<Object> {
        let now = state.processes.get(proc)?;
        let container = &state.containers.get(now.container as usize)?.cid;
        let then = self.state.processes.iter().find(|p| {
            p.pid == now.pid
                && self.state.containers.get(p.container as usize).is_some_and(|c| c.cid == *container)
        })?;
        then.mm.map(Object::Memory)
    }

    /// The memory object in the parent image that is `object` now.
    fn object(&self, object: &ShmemState) -> Option<Object> {
        let then =
            self.state.shmems.iter().position(|s| s.identity == object.identity && s.kind == object.kind)?;
        Some(Object::Shared(then as u32))
    }
}

impl Output {
    /// Takes the image's descriptors from those that came with the order.
    pub fn take(order: &DumpOrder, fds: &mut std::vec::IntoIter<OwnedFd>) -> Result<Self> {
        let statefile = next_fd(fds, "statefile")?.into();
        let pages = if order.have_pages_file {
            Some((next_fd(fds, "pages metadata file")?.into(), next_fd(fds, "pages file")?.into()))
        } else {
            None
        };
        let parent = if order.parent { Some(Parent::open(order, fds)?) } else { None };
        Ok(Self { statefile, pages, parent })
    }
}

/// An image on its way.
#[derive(Debug)]
pub(super) struct Image {
    writer: image::Writer,
    output: Option<(File, File)>,
    compression: Compression,
    sums: SumKind,
    location: PagesIn,
    pages: pages::Writer,
    spaces: Vec<Space>,
    parent: Option<Parent>,
    /// What tracks writes from now on, and the process whose it is.
    trackers: Vec<(i32, Tracker)>,
}

/// An address space while it is written.
#[derive(Debug)]
struct Space {
    /// What may have changed, if that had to be found out while it stood still.
    runs: Option<Vec<Run>>,
    /// Position in [`Context::spaces`].
    number: usize,
    object: Object,
    memory: SpaceMemory,
    /// Position in [`Context::spaces`] of the space that it was forked from.
    like: Option<usize>,
}

#[derive(Debug)]
enum SpaceMemory {
    /// The process itself, which stands still.
    Own(Memory),
    /// A copy of what it was.
    Shadow(Shadow),
}

impl Space {
    fn memory(&self) -> &Memory {
        match &self.memory {
            SpaceMemory::Own(memory) => memory,
            SpaceMemory::Shadow(shadow) => shadow.memory(),
        }
    }
}

impl Image {
    /// Begins an image, which is marked incomplete until the end, and saves all that must be saved while the containers
    /// stand still: everything, or, when they are to go on meanwhile, what they share and what cannot be shadowed.
    ///
    /// # Errors
    /// What cannot be read or written.
    pub fn begin(
        link: &Link,
        ctx: &mut Context,
        output: Output,
        filesystems: &Filesystems,
        watch: &mut Watch,
    ) -> Result<Self> {
        let compression = Compression::from_name(&ctx.order.compression)?;
        let options = WriterOptions { key: ctx.order.key.clone(), compression, sync: true };
        let mut writer = image::Writer::create(output.statefile, options)?;
        if !ctx.order.pre_dump {
            filesystems.write(ctx, &mut writer)?;
            watch.step("filesystems");
        }
        let sums = SumKind::for_key(ctx.order.key.is_some());
        let page_options = pages::Options {
            compression,
            sums,
            direct: ctx.order.direct,
            id: writer.generation().0,
            ..pages::Options::default()
        };
        let (location, pages) = match &output.pages {
            Some((_, pages)) => (PagesIn::Files, pages::Writer::new(pages.try_clone()?, 0, page_options)?),
            None => {
                let base = writer.raw(image::SECTION_PAGES)?;
                let file = writer.file().try_clone()?;
                (PagesIn::Statefile, pages::Writer::new(file, base, page_options)?)
            }
        };
        let (output, parent) = (output.pages, output.parent);
        let mut image = Self {
            writer,
            output,
            compression,
            sums,
            location,
            pages,
            spaces: Vec::new(),
            parent,
            trackers: Vec::new(),
        };
        if let Some(parent) = image.parent.as_ref().and_then(|p| p.ancestry.first()) {
            image.pages.set_parent(parent.generation.0);
        }
        image.objects(link, ctx)?;
        watch.step("shared memory");
        image.take_spaces(link, ctx)?;
        watch.step("shadows");
        if !image.spaces.iter().all(|s| matches!(s.memory, SpaceMemory::Shadow(_))) {
            image.private(link, ctx)?;
            watch.step("memory");
        }
        Ok(image)
    }

    /// Memory objects: they have no shadows.
    fn objects(&mut self, link: &Link, ctx: &Context) -> Result<()> {
        let layouts = ctx
            .contents
            .iter()
            .map(|(id, _)| {
                let Some(parent) = &self.parent else { return Ok(None) };
                let object = ctx.state.shmems.get(*id as usize).and_then(|s| parent.object(s));
                object.map(|o| Ok((o, parent.chain.layout(o)?))).transpose()
            })
            .collect::<Result<Vec<_>>>()?;
        let tasks: Vec<Task<'_>> = ctx
            .contents
            .iter()
            .zip(&layouts)
            .map(|((id, fd), layout)| {
                let size = ctx.state.shmems.get(*id as usize).map_or(0, |s| s.size);
                Task {
                    object: Object::Shared(*id),
                    content: Content::File(fd.as_fd(), size),
                    like: None,
                    known: known(self.parent.as_ref(), Some(layout), true),
                }
            })
            .collect();
        let progress = |done: u64, total: u64| link.progress("writing shared memory", done, total);
        self.pages.add(&tasks, Some(&progress)).map(drop)
    }

    /// Whether the next checkpoint shall know what was written since this one.
    fn tracks(ctx: &Context) -> bool {
        ctx.order.resume && (ctx.order.pre_dump || ctx.order.parent)
    }

    /// Whether writes were tracked since the parent image was made.
    fn tracked(&self, ctx: &Context) -> bool {
        let parent = self.parent.as_ref().and_then(|p| p.ancestry.first());
        parent.is_some_and(|p| ctx.order.tracked.as_ref().is_some_and(|t| t.image == p.generation.0))
    }

    fn take_spaces(&mut self, link: &Link, ctx: &mut Context) -> Result<()> {
        let tracked = self.tracked(ctx);
        let mut changed = Vec::new();
        for space in &ctx.spaces {
            let Some(proc) = ctx.procs.get(space.proc).filter(|_| tracked) else { continue };
            let memory = Memory::open(&ctx.procfs, proc.task())?;
            let ranges: Vec<Range> = space.extents.iter().map(Extent::range).collect();
            changed.push(Some(pages::track::scan_since(&memory, &ranges)?));
        }
        if Self::tracks(ctx) {
            let mut before = HashMap::new();
            if let Some(tracked) = &ctx.order.tracked {
                let trackers = link.ask(&Event::Untrack)?.into_iter().map(Tracker::new);
                before.extend(tracked.processes.iter().copied().zip(trackers));
            }
            self.arm(ctx, before)?;
        }
        changed.resize_with(ctx.spaces.len(), || None);
        for (number, space) in ctx.spaces.iter().enumerate() {
            let apart = apart(ctx.state.mms.get(space.mm as usize));
            let Some(proc) = ctx.procs.get_mut(space.proc) else { continue };
            let (task, parent) = (proc.task(), proc.parent);
            let shadow = match proc.injector().filter(|_| ctx.order.resume && !ctx.order.paused) {
                Some((tracee, region)) => Shadow::make(&ctx.procfs, tracee, &region, &apart)?,
                None => None,
            };
            let memory = match shadow {
                Some(shadow) => SpaceMemory::Shadow(shadow),
                None => SpaceMemory::Own(Memory::open(&ctx.procfs, task)?),
            };
            let like =
                parent.and_then(|p| ctx.spaces.iter().position(|s| s.proc == p)).filter(|p| *p < number);
            let runs = changed.get_mut(number).and_then(Option::take);
            self.spaces.push(Space { runs, number, object: Object::Memory(space.mm), memory, like });
        }
        Ok(())
    }

    /// Has the kernel remember writes to all address spaces from now on, with what did so `before` where it still can.
    /// Without that the next checkpoint compares.
    fn arm(&mut self, ctx: &mut Context, mut before: HashMap<i32, Tracker>) -> Result<()> {
        if ctx.spaces.len() > binary::MAX_FDS {
            return Ok(());
        }
        for space in &ctx.spaces {
            let Some(proc) = ctx.procs.get_mut(space.proc) else { continue };
            let task = proc.task();
            let memory = Memory::open(&ctx.procfs, task)?;
            let ranges: Vec<Range> = space.extents.iter().map(Extent::range).collect();
            if let Some(tracker) = before.remove(&task)
                && tracker.arm(&memory, &ranges)?
            {
                self.trackers.push((task, tracker));
                continue;
            }
            let Some((tracee, _)) = proc.injector() else { continue };
            let Some(fd) = descriptor::make(tracee, Purpose::Writes, None)? else {
                self.trackers.clear();
                return Ok(());
            };
            let tracker = Tracker::new(fd);
            if tracker.arm(&memory, &ranges)? {
                self.trackers.push((task, tracker));
            }
        }
        Ok(())
    }

    /// Whether nothing more is needed of the processes themselves.
    pub fn may_resume(&self) -> bool {
        self.spaces.iter().all(|s| matches!(s.memory, SpaceMemory::Shadow(_)))
    }

    /// Writes private memory, of the processes or of their shadows.
    fn private(&mut self, link: &Link, ctx: &mut Context) -> Result<()> {
        let tracked = self.tracked(ctx);
        let mut runs: Vec<Vec<Run>> = Vec::with_capacity(self.spaces.len());
        let mut layouts = Vec::with_capacity(self.spaces.len());
        for space in &mut self.spaces {
            let Some(described) = ctx.spaces.get(space.number) else { continue };
            let ranges: Vec<Range> = described.extents.iter().map(Extent::range).collect();
            let found = match space.runs.take() {
                Some(runs) => runs,
                None => pages::scan(space.memory(), &ranges)?,
            };
            let parent = self.parent.as_ref();
            let before = parent.and_then(|p| Some((p, p.space(&ctx.state, described.proc)?)));
            layouts.push(
                before.map(|(p, object)| Ok::<_, Error>((object, p.chain.layout(object)?))).transpose()?,
            );
            let vmas = ctx.state.mms.get_mut(described.mm as usize).map(|mm| mm.vmas.as_mut_slice());
            let vmas = vmas.unwrap_or_default();
            for guard in found.iter().filter(|r| r.kind == RunKind::Guard) {
                let (start, end) = (guard.start, guard.end());
                if let Some(vma) = vmas.iter_mut().find(|v| v.start <= start && end <= v.end) {
                    vma.guards.push((start, end));
                }
            }
            runs.push(found);
        }
        let tasks: Vec<Task<'_>> = self
            .spaces
            .iter()
            .zip(&runs)
            .enumerate()
            .map(|(i, (space, own))| {
                let parent = space.like.and_then(|i| self.spaces.get(i).zip(runs.get(i)));
                let like =
                    parent.map(|(other, runs)| Like { object: other.object, memory: other.memory(), runs });
                let known = known(self.parent.as_ref(), layouts.get(i), !tracked);
                // What the parent image has of it is nearer than what another process has.
                let like = like.filter(|_| known.is_none());
                Task { object: space.object, content: Content::Memory(space.memory(), own), like, known }
            })
            .collect();
        let progress = |done: u64, total: u64| link.progress("writing memory", done, total);
        let (mms, early): (Vec<_>, Vec<_>) = self
            .spaces
            .iter()
            .filter_map(|space| {
                let described = ctx.spaces.get(space.number)?;
                Some((described.mm, (space.memory().pid(), described.early.as_deref()?)))
            })
            .unzip();
        let write = || self.pages.add(&tasks, Some(&progress)).map(drop);
        for Changed { space, start, advice } in early::confirm_while(&ctx.procfs, &early, write)? {
            let mm = mms.get(space).and_then(|mm| ctx.state.mms.get_mut(*mm as usize));
            if let Some(vma) = mm.and_then(|mm| mm.vmas.iter_mut().find(|v| v.start == start)) {
                vma.advice = advice;
            }
        }
        drop(tasks);
        for space in std::mem::take(&mut self.spaces) {
            if let SpaceMemory::Shadow(shadow) = space.memory {
                let proc = ctx.spaces.get(space.number).and_then(|s| ctx.procs.get_mut(s.proc));
                shadow.end(&ctx.procfs, proc.and_then(|p| p.threads.first_mut()))?;
            }
        }
        Ok(())
    }

    /// Writes what is left. The image is complete when this returns.
    ///
    /// # Errors
    /// What cannot be read or written.
    pub fn finish(
        mut self,
        link: &Link,
        ctx: &mut Context,
        watch: &mut Watch,
    ) -> Result<(Report, Vec<OwnedFd>)> {
        if !self.spaces.is_empty() {
            self.private(link, ctx)?;
            watch.step("memory");
        }
        let stats = self.pages.stats();
        let (_, index) = self.pages.finish()?;
        let encoded = index.encode();
        let mut writer = self.writer;
        let mut pages_info = PagesInfo {
            location: self.location,
            count: stats.stored,
            index: None,
            size: index.data_len,
            sums: match self.sums {
                SumKind::Blake3 => Sums::Blake3,
                SumKind::Xxh3 => Sums::Xxh3,
                _ => Sums::None,
            },
        };
        match &self.output {
            Some((meta, pages)) => {
                use std::os::unix::fs::FileExt;
                meta.set_len(0)
                    .and_then(|()| meta.write_all_at(&encoded, 0))
                    .and_then(|()| meta.sync_all())
                    .map_err(|e| Error::from(e).context("writing the pages metadata file"))?;
                pages.sync_data().map_err(|e| Error::from(e).context("writing the pages file"))?;
                pages_info.index = Some(FileIdentity::of_bytes(&encoded));
            }
            None => {
                writer.end_raw(index.data_len)?;
                writer.put(image::SECTION_PAGES_INDEX, &encoded)?;
            }
        }
        watch.step("page index");
        writer.put_json(image::SECTION_STATE, &ctx.state)?;
        let parents = self.parent.map(|p| p.ancestry).unwrap_or_default();
        let metadata = metadata(ctx, pages_info, self.compression, parents);
        let generation = writer.generation().0;
        let (processes, threads) = (metadata.processes, metadata.threads);
        writer.finish(metadata)?;
        watch.step("statefile");
        let (tracked, trackers): (Vec<i32>, Vec<OwnedFd>) =
            self.trackers.into_iter().map(|(task, t)| (task, t.into_descriptor())).unzip();
        let report = Report {
            processes,
            threads,
            pages: stats.stored,
            zero_pages: stats.zero,
            parent_pages: stats.parent,
            bytes: stats.bytes,
            warnings: ctx.state.warnings.clone(),
            tracked: (!trackers.is_empty()).then_some(Tracked { image: generation, processes: tracked }),
            ..Report::default()
        };
        Ok((report, trackers))
    }
}

/// What a parent image has of an object; `compare`: what may have changed is compared with it.
fn known<'a>(
    parent: Option<&'a Parent>,
    layout: Option<&'a Option<(Object, Layout)>>,
    compare: bool,
) -> Option<Known<'a>> {
    let (object, layout) = layout?.as_ref()?;
    Some(Known { object: *object, layout, chain: &parent?.chain, compare })
}

/// Mappings that a clone would not have.
fn apart(mm: Option<&MmState>) -> Vec<(std::ops::Range<u64>, Apart)> {
    let of = |vma: &Vma| {
        let apart = if vma.advice.contains(&libc::MADV_DONTFORK) {
            Apart::DontFork
        } else if vma.advice.contains(&libc::MADV_WIPEONFORK) {
            Apart::WipeOnFork
        } else {
            return None;
        };
        Some((vma.start..vma.end, apart))
    };
    mm.into_iter().flat_map(|mm| &mm.vmas).filter_map(of).collect()
}

fn metadata(
    ctx: &Context,
    pages: PagesInfo,
    compression: Compression,
    parents: Vec<image::Parent>,
) -> Metadata {
    let state = &ctx.state;
    let containers = &state.containers;
    Metadata {
        airlock_version: env!("CARGO_PKG_VERSION").to_owned(),
        created: humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string(),
        sandbox: containers.first().map(|c| c.cid.clone()).unwrap_or_default(),
        container_count: Some(containers.len().to_string()),
        container_specs: containers.iter().map(|c| (c.name.clone(), SpecText(c.spec.clone()))).collect(),
        containers: containers
            .iter()
            .map(|c| ContainerName { id: c.cid.clone(), name: c.name.clone() })
            .collect(),
        machine: state.machine.clone(),
        clocks: state.clocks,
        processes: state.processes.len() as u32,
        threads: state.processes.iter().map(|p| p.threads.len() as u32).sum(),
        compression,
        pages,
        parents,
        resumed: ctx.order.resume,
        pre_dump: ctx.order.pre_dump,
        user: ctx.order.metadata.iter().cloned().collect(),
        supervisor: ctx.order.supervisor.clone(),
        ..Metadata::default()
    }
}

impl Extent {
    fn range(&self) -> Range {
        Range {
            start: self.start,
            end: self.end,
            huge: self.huge,
            page_size: self.page_size,
            backed: self.backed,
            file_pages: self.file_pages,
        }
    }
}
