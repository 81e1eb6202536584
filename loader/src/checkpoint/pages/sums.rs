//! Checksums of pages.
#![forbid(unsafe_code)]

use twox_hash::XxHash3_128;

/// What the checksums of pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SumKind {
    /// There are none.
    None,
    /// The low 64 bits of XXH3 (128 bits) with the index's seed: against accidents.
    #[default]
    Xxh3,
    /// The first 128 bits of BLAKE3: against intent too, when the index itself is sealed.
    Blake3,
}

impl SumKind {
    /// The kind that fits: strong if there is a key.
    pub fn for_key(sealed: bool) -> Self {
        if sealed { Self::Blake3 } else { Self::Xxh3 }
    }

    /// Bytes of one checksum.
    pub fn width(self) -> usize {
        match self {
            Self::None => 0,
            Self::Xxh3 => 8,
            Self::Blake3 => 16,
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Xxh3 => 1,
            Self::Blake3 => 2,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        [Self::None, Self::Xxh3, Self::Blake3].into_iter().find(|k| k.number() == number)
    }

    /// Appends the checksum of a page.
    pub(super) fn append(self, seed: u64, page: &[u8], sums: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Xxh3 => sums.extend((XxHash3_128::oneshot_with_seed(seed, page) as u64).to_le_bytes()),
            Self::Blake3 => sums.extend(blake3::hash(page).as_bytes().iter().take(16)),
        }
    }

    /// True when `sum` is the checksum of the page.
    pub(super) fn matches(self, seed: u64, page: &[u8], sum: &[u8]) -> bool {
        match self {
            Self::None => true,
            Self::Xxh3 => (XxHash3_128::oneshot_with_seed(seed, page) as u64).to_le_bytes() == *sum,
            Self::Blake3 => blake3::hash(page).as_bytes().get(..16) == Some(sum),
        }
    }
}
