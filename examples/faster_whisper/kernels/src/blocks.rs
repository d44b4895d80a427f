//! Products and weighted sums in blocks of rows and inputs, for any vectors and any type of cells.

use std::ops::Range;

use super::vector::{Factors, Vector};
use super::{GROUP, Matrix};

/// Rows that share a load of a weight. Beams are five by default.
const ROWS: usize = 5;
/// How far ahead memory is requested. The processor itself notices a new row of weights too late.
const AHEAD_BYTES: usize = 8192;

/// A matrix whose rows have `width` cells.
///
/// # Safety
/// The matrix has the row and the place, and the cells from there on fill a vector.
trait Cells<V>: Copy {
    type Cell: Copy;
    /// Rows that are read side by side for more than three inputs: as many as the registers hold.
    const MOST_WIDE: usize = usize::MAX;
    /// Whether the registers hold eight rows for one input.
    const HAS_EIGHT: bool = true;
    unsafe fn row(self, row: usize) -> *const Self::Cell;
    /// The scale of a place and those behind it in its group, if there are scales.
    unsafe fn scale(self, row: usize, at: usize) -> V;
    unsafe fn load(from: *const Self::Cell, scale: V) -> V;
}

/// float32 or bfloat16, and the width.
#[derive(Clone, Copy)]
struct Plain<T>(*const T, usize);

impl<V: Factors> Cells<V> for Plain<f32> {
    type Cell = f32;

    #[inline(always)]
    unsafe fn row(self, row: usize) -> *const f32 {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(row * self.1) }
    }

    #[inline(always)]
    unsafe fn scale(self, _: usize, _: usize) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::zero() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32, _: V) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::load(from) }
    }
}

impl<V: Factors> Cells<V> for Plain<u16> {
    type Cell = u16;

    #[inline(always)]
    unsafe fn row(self, row: usize) -> *const u16 {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(row * self.1) }
    }

    #[inline(always)]
    unsafe fn scale(self, _: usize, _: usize) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::zero() }
    }

    #[inline(always)]
    unsafe fn load(from: *const u16, _: V) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::load_bfloat16(from) }
    }
}

/// int8, the scales, and the width.
#[derive(Clone, Copy)]
struct Scaled(*const i8, *const f32, usize);

impl<V: Vector> Cells<V> for Scaled {
    type Cell = i8;
    const MOST_WIDE: usize = 2;
    const HAS_EIGHT: bool = false;

    #[inline(always)]
    unsafe fn row(self, row: usize) -> *const i8 {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(row * self.2) }
    }

    #[inline(always)]
    unsafe fn scale(self, row: usize, at: usize) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::splat(*self.1.add(row * self.2.div_ceil(GROUP) + at / GROUP)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const i8, scale: V) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::load_int8(from).times(scale) }
    }
}

/// See [`products`]. `WIDE` rows of the matrix are read side by side.
#[inline(always)]
pub(super) unsafe fn products_of<V: Vector, const WIDE: usize>(
    matrix: Matrix<'_>,
    width: usize,
    inputs: &[f32],
    outputs: &mut [&mut [f32]],
) {
    // SAFETY: as the caller promises.
    unsafe {
        match matrix {
            Matrix::Float(cells) => {
                products_with::<V, _, WIDE>(Plain(cells.as_ptr(), width), width, inputs, outputs);
            }
            Matrix::BFloat16(cells) => {
                products_with::<V, _, WIDE>(Plain(cells.as_ptr(), width), width, inputs, outputs);
            }
            Matrix::Int8(cells, scales) => {
                let cells = Scaled(cells.as_ptr(), scales.as_ptr(), width);
                products_with::<V, _, WIDE>(cells, width, inputs, outputs);
            }
        }
    }
}

/// As [`products_of`], of bfloat16 in other factors than float32.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn products_of_bfloat16<V: Factors, const WIDE: usize>(
    cells: &[u16],
    width: usize,
    inputs: &[f32],
    outputs: &mut [&mut [f32]],
) {
    // SAFETY: as the caller promises.
    unsafe { products_with::<V, _, WIDE>(Plain(cells.as_ptr(), width), width, inputs, outputs) }
}

#[inline(always)]
unsafe fn products_with<V: Factors, C: Cells<V>, const WIDE: usize>(
    cells: C,
    width: usize,
    inputs: &[f32],
    outputs: &mut [&mut [f32]],
) {
    let count = outputs.first().map_or(0, |output| output.len());
    let mut first = 0;
    while first < count {
        // One input leaves registers for more rows. The sums of eight rows are made together.
        let wide = if outputs.len() == 1 && C::HAS_EIGHT {
            8
        } else {
            WIDE
        };
        let end = if first + wide <= count {
            first + wide
        } else {
            first + 1
        };
        for (inputs, outputs) in inputs.chunks(ROWS * width).zip(outputs.chunks_mut(ROWS)) {
            // SAFETY: as the caller promises.
            unsafe {
                match outputs.len() {
                    1 => rows::<V, C, 1, WIDE>(cells, first..end, width, inputs, outputs),
                    2 => rows::<V, C, 2, WIDE>(cells, first..end, width, inputs, outputs),
                    3 => rows::<V, C, 3, WIDE>(cells, first..end, width, inputs, outputs),
                    4 => rows::<V, C, 4, WIDE>(cells, first..end, width, inputs, outputs),
                    _ => rows::<V, C, ROWS, WIDE>(cells, first..end, width, inputs, outputs),
                }
            }
        }
        first = end;
    }
}

/// The products of `N` inputs with these rows of the matrix.
#[inline(always)]
unsafe fn rows<V: Factors, C: Cells<V>, const N: usize, const WIDE: usize>(
    cells: C,
    range: Range<usize>,
    width: usize,
    inputs: &[f32],
    outputs: &mut [&mut [f32]],
) {
    let mut row = range.start;
    // SAFETY: as the caller promises.
    unsafe {
        while row < range.end {
            if N == 1 && C::HAS_EIGHT && range.end - row >= 8 {
                block::<V, C, N, 8>(cells, row, width, inputs, outputs);
                row += 8;
            } else if range.end - row >= WIDE && (N < 4 || WIDE <= C::MOST_WIDE) {
                block::<V, C, N, WIDE>(cells, row, width, inputs, outputs);
                row += WIDE;
            } else if range.end - row >= 2 {
                block::<V, C, N, 2>(cells, row, width, inputs, outputs);
                row += 2;
            } else {
                block::<V, C, N, 1>(cells, row, width, inputs, outputs);
                row += 1;
            }
        }
    }
}

/// The products of `N` inputs with `WIDE` rows of the matrix from `first` on.
// Closures would not be compiled for the processor's vectors.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn block<V: Factors, C: Cells<V>, const N: usize, const WIDE: usize>(
    cells: C,
    first: usize,
    width: usize,
    inputs: &[f32],
    outputs: &mut [&mut [f32]],
) {
    let size = size_of::<C::Cell>();
    let ahead = AHEAD_BYTES.max(WIDE * width * size);
    // SAFETY: the inputs have N rows, the matrix has these rows, and the outputs have places for
    // them. Memory that is requested need not exist.
    unsafe {
        let mut sums = [[V::zero(); N]; WIDE];
        let mut from = [cells.row(first); WIDE];
        for row in 0..WIDE {
            from[row] = cells.row(first + row);
        }
        let mut values_from = inputs.as_ptr();
        let mut start = 0;
        while start < width {
            let mut scales = [V::zero(); WIDE];
            for row in 0..WIDE {
                scales[row] = cells.scale(first + row, start);
                for line in 0..size {
                    V::prefetch(from[row].cast::<u8>().wrapping_add(ahead + line * GROUP));
                }
            }
            // A group has a fixed number of vectors, so that the compiler unrolls the loop.
            let vectors = match start + GROUP <= width {
                true => GROUP / V::LANES,
                false => (width - start) / V::LANES,
            };
            for _ in 0..vectors {
                let mut values = [V::zero(); N];
                for n in 0..N {
                    values[n] = V::load(values_from.add(n * width));
                }
                for row in 0..WIDE {
                    let weight = C::load(from[row], scales[row]);
                    from[row] = from[row].add(V::LANES);
                    for n in 0..N {
                        sums[row][n] = V::times_add(weight, values[n], sums[row][n]);
                    }
                }
                values_from = values_from.add(V::LANES);
            }
            start += GROUP;
        }
        for n in 0..N {
            let output = outputs.get_unchecked_mut(n).as_mut_ptr().add(first);
            if WIDE == 8 {
                let mut all = [sums[0][n]; 8];
                for row in 0..WIDE {
                    all[row] = sums[row][n];
                }
                output.cast::<[f32; 8]>().write_unaligned(V::sums(all));
            } else {
                for row in 0..WIDE {
                    *output.add(row) = sums[row][n].sum();
                }
            }
        }
    }
}

/// For each row of `weights`, the sum of the weighted rows of the matrix. `WIDE` vectors of a row
/// are summed at once.
#[inline(always)]
pub(super) unsafe fn mix<V: Vector, const WIDE: usize>(
    matrix: Matrix<'_>,
    width: usize,
    weights: &[f32],
    mixed: &mut [f32],
) {
    // SAFETY: as the caller promises.
    unsafe {
        match matrix {
            Matrix::Float(cells) => {
                mix_with::<V, _, WIDE>(Plain(cells.as_ptr(), width), width, weights, mixed);
            }
            Matrix::BFloat16(cells) => {
                mix_with::<V, _, WIDE>(Plain(cells.as_ptr(), width), width, weights, mixed);
            }
            Matrix::Int8(cells, scales) => {
                let cells = Scaled(cells.as_ptr(), scales.as_ptr(), width);
                mix_with::<V, _, WIDE>(cells, width, weights, mixed);
            }
        }
    }
}

#[inline(always)]
unsafe fn mix_with<V: Vector, C: Cells<V>, const WIDE: usize>(
    cells: C,
    width: usize,
    weights: &[f32],
    mixed: &mut [f32],
) {
    let positions = weights.len() * width / mixed.len().max(1);
    let all = weights.chunks(ROWS * positions.max(1));
    for (weights, mixed) in all.zip(mixed.chunks_mut(ROWS * width)) {
        let mut at = 0;
        while at < width {
            let wide = if at + WIDE * V::LANES <= width { WIDE } else { 1 };
            let place = (positions, width, at);
            // SAFETY: as the caller promises.
            unsafe {
                match (mixed.len() / width, wide == WIDE) {
                    (1, true) => column::<V, C, 1, WIDE>(cells, place, weights, mixed),
                    (2, true) => column::<V, C, 2, WIDE>(cells, place, weights, mixed),
                    (3, true) => column::<V, C, 3, WIDE>(cells, place, weights, mixed),
                    (4, true) => column::<V, C, 4, WIDE>(cells, place, weights, mixed),
                    (ROWS, true) => column::<V, C, ROWS, WIDE>(cells, place, weights, mixed),
                    (1, false) => column::<V, C, 1, 1>(cells, place, weights, mixed),
                    (2, false) => column::<V, C, 2, 1>(cells, place, weights, mixed),
                    (3, false) => column::<V, C, 3, 1>(cells, place, weights, mixed),
                    (4, false) => column::<V, C, 4, 1>(cells, place, weights, mixed),
                    _ => column::<V, C, ROWS, 1>(cells, place, weights, mixed),
                }
            }
            at += wide * V::LANES;
        }
    }
}

/// The weighted sums of `WIDE` vectors from `at` on, for `N` rows of weights.
#[allow(clippy::needless_range_loop)] // As above.
#[inline(always)]
unsafe fn column<V: Vector, C: Cells<V>, const N: usize, const WIDE: usize>(
    cells: C,
    (positions, width, at): (usize, usize, usize),
    weights: &[f32],
    mixed: &mut [f32],
) {
    // SAFETY: there are N rows of weights and of results, and the matrix has these places.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; WIDE];
        for position in 0..positions {
            let from = cells.row(position).add(at);
            V::prefetch(from.cast::<u8>().wrapping_add(AHEAD_BYTES));
            let mut factors = [V::splat(0.0); N];
            for n in 0..N {
                factors[n] = V::splat(*weights.as_ptr().add(n * positions + position));
            }
            for part in 0..WIDE {
                let scale = cells.scale(position, at + part * V::LANES);
                let value = C::load(from.add(part * V::LANES), scale);
                for n in 0..N {
                    sums[part][n] = V::times_add(value, factors[n], sums[part][n]);
                }
            }
        }
        for part in 0..WIDE {
            for n in 0..N {
                sums[part][n].store(mixed.as_mut_ptr().add(n * width + at + part * V::LANES));
            }
        }
    }
}
