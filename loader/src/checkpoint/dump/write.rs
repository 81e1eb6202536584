//! Writing the image: pages, contents of filesystems, state, metadata; in this order, so that whatever is missing at
//! the end is missed by its absence.
#![forbid(unsafe_code)]

use super::context::{Context, Extent};
use crate::checkpoint::agent::{Link, next_fd};
use crate::checkpoint::image::{
    self, Compression, ContainerName, FileIdentity, Metadata, PagesIn, PagesInfo, SpecText, Sums,
    WriterOptions,
};
use crate::checkpoint::order::{DumpOrder, Report};
use crate::checkpoint::pages::shadow::{Apart, Shadow};
use crate::checkpoint::pages::{self, Content, Like, Memory, Object, Range, Run, RunKind, SumKind, Task};
use crate::checkpoint::state::{MmState, Vma};
use crate::checkpoint::watch::Watch;
use airlock_wire::error::{Error, Result};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

/// Where the image goes.
#[derive(Debug)]
pub(super) struct Output {
    statefile: File,
    /// Page index and pages, unless they go into the statefile.
    pages: Option<(File, File)>,
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
        Ok(Self { statefile, pages })
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
}

/// An address space while it is written.
#[derive(Debug)]
struct Space {
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
    pub fn begin(link: &Link, ctx: &mut Context, output: Output, watch: &mut Watch) -> Result<Self> {
        let compression = Compression::from_name(&ctx.order.compression)?;
        let options = WriterOptions { key: ctx.order.key.clone(), compression, sync: true };
        let mut writer = image::Writer::create(output.statefile, options)?;
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
        let output = output.pages;
        let mut image = Self { writer, output, compression, sums, location, pages, spaces: Vec::new() };
        image.objects(link, ctx)?;
        watch.step("shared memory");
        image.take_spaces(ctx)?;
        watch.step("shadows");
        if !image.spaces.iter().all(|s| matches!(s.memory, SpaceMemory::Shadow(_))) {
            image.private(link, ctx)?;
            watch.step("memory");
        }
        Ok(image)
    }

    /// Memory objects: they have no shadows.
    fn objects(&mut self, link: &Link, ctx: &Context) -> Result<()> {
        let tasks: Vec<Task<'_>> = ctx
            .contents
            .iter()
            .map(|(id, fd)| {
                let size = ctx.state.shmems.get(*id as usize).map_or(0, |s| s.size);
                Task {
                    object: Object::Shared(*id),
                    content: Content::File(fd.as_fd(), size),
                    like: None,
                    known: None,
                }
            })
            .collect();
        let progress = |done: u64, total: u64| link.progress("writing shared memory", done, total);
        self.pages.add(&tasks, Some(&progress)).map(drop)
    }

    fn take_spaces(&mut self, ctx: &mut Context) -> Result<()> {
        for (number, space) in ctx.spaces.iter().enumerate() {
            let apart = apart(ctx.state.mms.get(space.mm as usize));
            let Some(proc) = ctx.procs.get_mut(space.proc) else { continue };
            let (task, parent) = (proc.task(), proc.parent);
            let shadow = match proc.injector().filter(|_| ctx.order.resume) {
                Some((tracee, region)) => Shadow::make(&ctx.procfs, tracee, &region, &apart)?,
                None => None,
            };
            let memory = match shadow {
                Some(shadow) => SpaceMemory::Shadow(shadow),
                None => SpaceMemory::Own(Memory::open(&ctx.procfs, task)?),
            };
            let like =
                parent.and_then(|p| ctx.spaces.iter().position(|s| s.proc == p)).filter(|p| *p < number);
            self.spaces.push(Space { number, object: Object::Memory(space.mm), memory, like });
        }
        Ok(())
    }

    /// Whether nothing more is needed of the processes themselves.
    pub fn may_resume(&self) -> bool {
        self.spaces.iter().all(|s| matches!(s.memory, SpaceMemory::Shadow(_)))
    }

    /// Writes private memory, of the processes or of their shadows.
    fn private(&mut self, link: &Link, ctx: &mut Context) -> Result<()> {
        let mut runs: Vec<Vec<Run>> = Vec::with_capacity(self.spaces.len());
        for space in &self.spaces {
            let Some(described) = ctx.spaces.get(space.number) else { continue };
            let ranges: Vec<Range> = described.extents.iter().map(Extent::range).collect();
            let found = pages::scan(space.memory(), &ranges)?;
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
            .map(|(space, own)| {
                let parent = space.like.and_then(|i| self.spaces.get(i).zip(runs.get(i)));
                let like =
                    parent.map(|(other, runs)| Like { object: other.object, memory: other.memory(), runs });
                Task {
                    object: space.object,
                    content: Content::Memory(space.memory(), own),
                    like,
                    known: None,
                }
            })
            .collect();
        let progress = |done: u64, total: u64| link.progress("writing memory", done, total);
        self.pages.add(&tasks, Some(&progress))?;
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
    pub fn finish(mut self, link: &Link, ctx: &mut Context, watch: &mut Watch) -> Result<Report> {
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
        let metadata = metadata(ctx, pages_info, self.compression);
        let (processes, threads) = (metadata.processes, metadata.threads);
        writer.finish(metadata)?;
        watch.step("statefile");
        Ok(Report {
            processes,
            threads,
            pages: stats.stored,
            zero_pages: stats.zero,
            parent_pages: stats.parent,
            bytes: stats.bytes,
            warnings: ctx.state.warnings.clone(),
            ..Report::default()
        })
    }
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

fn metadata(ctx: &Context, pages: PagesInfo, compression: Compression) -> Metadata {
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
        resumed: ctx.order.resume,
        pre_dump: ctx.order.pre_dump,
        user: ctx.order.metadata.iter().cloned().collect(),
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
