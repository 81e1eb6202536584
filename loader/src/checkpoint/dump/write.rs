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
use crate::checkpoint::pages::{self, Content, Like, Memory, Object, Range, Run, RunKind, SumKind, Task};
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

/// An address space while it is written.
struct Space {
    object: Object,
    memory: Memory,
    runs: Vec<Run>,
    /// Position of the space that it was forked from.
    like: Option<usize>,
}

/// Writes everything. The image is complete when this returns.
pub(super) fn image(link: &Link, ctx: &mut Context, output: Output, watch: &mut Watch) -> Result<Report> {
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
    let (location, page_writer) = match &output.pages {
        Some((_, pages)) => (PagesIn::Files, pages::Writer::new(pages.try_clone()?, 0, page_options)?),
        None => {
            let base = writer.raw(image::SECTION_PAGES)?;
            let file = writer.file().try_clone()?;
            (PagesIn::Statefile, pages::Writer::new(file, base, page_options)?)
        }
    };
    let (index, stats) = memory(link, ctx, page_writer)?;
    let encoded = index.encode();
    let mut pages_info = PagesInfo {
        location,
        count: stats.stored,
        index: None,
        size: index.data_len,
        sums: match sums {
            SumKind::Blake3 => Sums::Blake3,
            SumKind::Xxh3 => Sums::Xxh3,
            _ => Sums::None,
        },
    };
    match &output.pages {
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
    watch.step("pages");
    writer.put_json(image::SECTION_STATE, &ctx.state)?;
    let threads = ctx.state.processes.iter().map(|p| p.threads.len() as u32).sum();
    let metadata = Metadata {
        airlock_version: env!("CARGO_PKG_VERSION").to_owned(),
        created: humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string(),
        sandbox: ctx.state.containers.first().map(|c| c.cid.clone()).unwrap_or_default(),
        container_count: Some(ctx.state.containers.len().to_string()),
        container_specs: ctx
            .state
            .containers
            .iter()
            .map(|c| (c.name.clone(), SpecText(c.spec.clone())))
            .collect(),
        containers: ctx
            .state
            .containers
            .iter()
            .map(|c| ContainerName { id: c.cid.clone(), name: c.name.clone() })
            .collect(),
        machine: ctx.state.machine.clone(),
        clocks: ctx.state.clocks,
        processes: ctx.state.processes.len() as u32,
        threads,
        compression,
        pages: pages_info,
        resumed: ctx.order.resume,
        pre_dump: ctx.order.pre_dump,
        user: ctx.order.metadata.iter().cloned().collect(),
        ..Metadata::default()
    };
    writer.finish(metadata)?;
    watch.step("statefile");
    Ok(Report {
        processes: ctx.state.processes.len() as u32,
        threads,
        pages: stats.stored,
        zero_pages: stats.zero,
        parent_pages: stats.parent,
        bytes: stats.bytes,
        warnings: ctx.state.warnings.clone(),
        ..Report::default()
    })
}

/// Writes the pages of all address spaces and memory objects.
fn memory(link: &Link, ctx: &mut Context, mut writer: pages::Writer) -> Result<(pages::Index, pages::Stats)> {
    let mut spaces: Vec<Space> = Vec::with_capacity(ctx.spaces.len());
    let mut guards: Vec<(u32, u64, u64)> = Vec::new();
    for space in &ctx.spaces {
        let Some(proc) = ctx.procs.get(space.proc) else { continue };
        let memory = Memory::open(&ctx.procfs, proc.task())?;
        let ranges: Vec<Range> = space.extents.iter().map(Extent::range).collect();
        let runs = pages::scan(&memory, &ranges)?;
        guards.extend(runs.iter().filter(|r| r.kind == RunKind::Guard).map(|r| (space.mm, r.start, r.end())));
        let parent = proc.parent.and_then(|p| ctx.spaces.iter().position(|s| s.proc == p));
        let like = parent.filter(|p| *p < spaces.len());
        spaces.push(Space { object: Object::Memory(space.mm), memory, runs, like });
    }
    for (mm, start, end) in guards {
        let vmas = ctx.state.mms.get_mut(mm as usize).map(|mm| mm.vmas.as_mut_slice()).unwrap_or_default();
        if let Some(vma) = vmas.iter_mut().find(|v| v.start <= start && end <= v.end) {
            vma.guards.push((start, end));
        }
    }
    let mut tasks: Vec<Task<'_>> = Vec::with_capacity(spaces.len() + ctx.contents.len());
    for space in &spaces {
        let like = space.like.and_then(|i| spaces.get(i)).map(|other| Like {
            object: other.object,
            memory: &other.memory,
            runs: &other.runs,
        });
        tasks.push(Task {
            object: space.object,
            content: Content::Memory(&space.memory, &space.runs),
            like,
            known: None,
        });
    }
    for (id, fd) in &ctx.contents {
        let size = ctx.state.shmems.get(*id as usize).map_or(0, |s| s.size);
        let content = Content::File(fd.as_fd(), size);
        tasks.push(Task { object: Object::Shared(*id), content, like: None, known: None });
    }
    let progress = |done: u64, total: u64| link.progress("writing memory", done, total);
    writer.add(&tasks, Some(&progress))?;
    let stats = writer.stats();
    let (_, index) = writer.finish()?;
    Ok((index, stats))
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
