//! How the content of an object differs between two images.
#![forbid(unsafe_code)]

use super::pool::Buffer;
use super::{Chain, Layout, Object, PAGE, unit};
use airlock_wire::error::Result;

/// How many pages are the same, and how many are not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Pages that both images have, with the same content.
    pub same: u64,
    /// Pages that both images have, with other content.
    pub changed: u64,
    /// Pages that only the first image has.
    pub first_only: u64,
    /// Pages that only the second image has.
    pub second_only: u64,
}

impl Compared {
    /// True when there is no difference.
    pub fn is_same(&self) -> bool {
        self.changed + self.first_only + self.second_only == 0
    }
}

/// Compares an object of one image with an object of another, page by page, position by position. Reads and checks every
/// page that both have, in parents too. Memory that no image stores (never touched) counts as not there.
///
/// # Errors
/// A page cannot be read or is damaged.
pub fn compare(first: (&Chain, Object), second: (&Chain, Object)) -> Result<Compared> {
    let (one, two) = (first.0.layout(first.1)?, second.0.layout(second.1)?);
    let mut found = Compared::default();
    // Two of each: a page must not be overwritten by the one that it is compared with.
    let (mut buffer, mut other) = (Buffer::new(), Buffer::new());
    let mut common = 0;
    for piece in one.pieces().iter().flat_map(unit::pieces) {
        let parts: Vec<_> = two.within(piece.start..piece.end()).collect();
        if parts.is_empty() {
            continue;
        }
        let pages = first.0.read(&piece, &mut buffer)?;
        for part in parts {
            let there = second.0.read(&part, &mut other)?;
            let from = (part.start - piece.start) as usize;
            let here = pages.get(from..).unwrap_or_default();
            for (a, b) in here.chunks_exact(PAGE as usize).zip(there.chunks_exact(PAGE as usize)) {
                *(if a == b { &mut found.same } else { &mut found.changed }) += 1;
            }
            common += part.pages;
        }
    }
    let only = |layout: &Layout| layout.pages().saturating_sub(common);
    (found.first_only, found.second_only) = (only(&one), only(&two));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Program, range};
    use super::super::{Content, Image, Memory, Options, Range, Task, Writer, scan};
    use super::*;
    use crate::checkpoint::image::Compression;

    const MM: Object = Object::Memory(0);

    fn image(memory: &Memory, ranges: &[Range], compression: Compression) -> Chain {
        let runs = scan(memory, ranges).unwrap();
        let options = Options { compression, ..Options::default() };
        let mut writer = Writer::new(tempfile::tempfile().unwrap(), 0, options).unwrap();
        writer
            .add(
                &[Task { object: MM, content: Content::Memory(memory, &runs), like: None, known: None }],
                None,
            )
            .unwrap();
        let (file, index) = writer.finish().unwrap();
        Chain::new(vec![Image { index, file, base: 0 }]).unwrap()
    }

    #[test]
    fn pages_are_compared_where_both_have_them() {
        let Some(mut program) = Program::start() else { return };
        let whole = program.anon(300);
        let a = whole.start;
        program.run(&format!("put({a}, 1, range(0, 200))"));
        let ranges = [range(a, 300)];
        let before = image(&program.memory(), &ranges, Compression::None);
        for compression in [Compression::None, Compression::Lz4] {
            let same = image(&program.memory(), &ranges, compression);
            let found = compare((&before, MM), (&same, MM)).unwrap();
            assert_eq!(found, Compared { same: 200, ..Compared::default() });
            assert!(found.is_same());
        }
        // Three pages change, in different units; two are given back, five are new.
        program.run(&format!("put({a}, 2, [0, 63, 130])"));
        program.run(&format!("advise({a} + 10 * P, 2, 4)"));
        program.run(&format!("put({a}, 1, range(250, 255))"));
        for compression in [Compression::None, Compression::Lz4] {
            let after = image(&program.memory(), &ranges, compression);
            let expected = Compared { same: 195, changed: 3, first_only: 2, second_only: 5 };
            assert_eq!(compare((&before, MM), (&after, MM)).unwrap(), expected);
            let turned = Compared { first_only: 5, second_only: 2, ..expected };
            assert_eq!(compare((&after, MM), (&before, MM)).unwrap(), turned);
        }
        assert_eq!(compare((&before, MM), (&before, Object::Memory(9))).unwrap().first_only, 200);
    }
}
