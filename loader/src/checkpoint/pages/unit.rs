//! Cutting work into units.
#![forbid(unsafe_code)]

use super::{PAGE, Piece, Source, UNIT};

/// Bytes of a unit.
pub(super) const UNIT_BYTES: u64 = UNIT * PAGE;

/// Cuts a range of positions where units end (positions that are multiples of a unit).
pub(super) fn cut(start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = start;
    std::iter::from_fn(move || {
        let from = at;
        let to = (from - from % UNIT_BYTES).saturating_add(UNIT_BYTES).min(end);
        at = to;
        (from < to).then_some((from, to))
    })
}

/// Cuts a piece into pieces of a unit at most; a compressed one stays whole.
pub(super) fn pieces(piece: &Piece) -> impl Iterator<Item = Piece> + use<> {
    let piece = *piece;
    let whole = matches!(piece.source, Source::Packed { .. });
    let parts = cut(piece.start, if whole { piece.start } else { piece.end() });
    whole.then_some(piece).into_iter().chain(parts.map(move |(from, to)| piece.part(from..to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_end_at_multiples() {
        let cuts: Vec<_> = cut(3 * PAGE, 130 * PAGE).map(|(a, b)| (a / PAGE, b / PAGE)).collect();
        assert_eq!(cuts, [(3, 64), (64, 128), (128, 130)]);
        assert_eq!(cut(64 * PAGE, 64 * PAGE).count(), 0);
    }
}
