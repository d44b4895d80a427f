//! Aligns tokens with positions of the encoder: which position each token starts at.

use tch::{Kind, TchError, Tensor};

use crate::error::Error;

/// Width of the median filter over positions. It is odd.
const MEDIAN_WIDTH: i64 = 7;
/// Against a division by zero, for a head with the same weight for every token.
const LEAST_DEVIATION: f64 = 1e-10;

/// The times of the tokens of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Alignment {
    /// The position of the encoder at which each token starts, and that at which the last one ends.
    pub starts: Vec<usize>,
    /// The probability of each token among those of text.
    pub probabilities: Vec<f64>,
}

/// The mean over heads of their filtered attention weights: tokens × positions. `scores` are those
/// before the softmax, one tensor per layer: 1 × heads × tokens × positions.
pub(crate) fn weights(scores: &[Tensor], positions: i64) -> Result<Option<Tensor>, TchError> {
    let mut sum: Option<Tensor> = None;
    let mut heads = 0;
    // Head by head: the filter needs seven times the memory of its input.
    for scores in scores {
        for head in 0..scores.size4()?.1 {
            let weights = scores
                .f_select(1, head)?
                .f_narrow(-1, 0, positions)?
                .f_softmax(-1, Kind::Float)?;
            let deviation = weights
                .f_std_dim([-2].as_slice(), false, true)?
                .f_clamp_min(LEAST_DEVIATION)?;
            let mean = weights.f_mean_dim([-2].as_slice(), true, Kind::Float)?;
            let filtered = median(&weights.f_sub(&mean)?.f_div(&deviation)?)?;
            sum = Some(match sum {
                None => filtered,
                Some(sum) => sum.f_add(&filtered)?,
            });
            heads += 1;
        }
    }
    match sum {
        None => Ok(None),
        Some(sum) => sum.f_squeeze_dim(0)?.f_div_scalar(i64::from(heads)).map(Some),
    }
}

/// The median of each value and its neighbours, along the last dimension.
fn median(values: &Tensor) -> Result<Tensor, TchError> {
    let side = MEDIAN_WIDTH / 2;
    if values.size3()?.2 <= side {
        return Ok(values.shallow_clone());
    }
    let windows = values
        .f_reflection_pad1d([side, side])?
        .f_unfold(-1, MEDIAN_WIDTH, 1)?;
    let (sorted, _) = windows.f_sort(-1, false)?;
    sorted.f_select(-1, side)
}

/// The position at which each row starts, on the way through the matrix (rows × positions) with the
/// largest sum. The way goes forward by a row, a position or both.
pub(crate) fn starts(matrix: &Tensor) -> Result<Vec<usize>, Error> {
    let (rows, columns) = matrix.size2()?;
    let (rows, columns) = (rows as usize, columns as usize);
    let values = Vec::<f32>::try_from(&matrix.f_contiguous()?.f_flatten(0, -1)?)?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::NotANumber { offset: 0.0 });
    }
    let mut before = vec![f32::INFINITY; columns + 1];
    if let Some(first) = before.first_mut() {
        *first = 0.0;
    }
    let mut steps = Vec::with_capacity(rows * columns);
    for row in values.chunks(columns.max(1)) {
        let mut costs = vec![f32::INFINITY; columns + 1];
        let mut left = f32::INFINITY;
        for ((value, pair), cost) in row.iter().zip(before.windows(2)).zip(costs.iter_mut().skip(1)) {
            let &[diagonal, above] = pair else { continue };
            let (step, least) = if diagonal < above && diagonal < left {
                (Step::Both, diagonal)
            } else if above < diagonal && above < left {
                (Step::Row, above)
            } else {
                (Step::Position, left)
            };
            left = least - value;
            *cost = left;
            steps.push(step);
        }
        before = costs;
    }
    let mut starts = vec![0; rows];
    let (mut row, mut column) = (rows, columns);
    while row > 0 && column > 0 {
        if let Some(start) = starts.get_mut(row - 1) {
            *start = column - 1;
        }
        match steps.get((row - 1) * columns + column - 1) {
            Some(Step::Both) => (row, column) = (row - 1, column - 1),
            Some(Step::Row) => row -= 1,
            _ => column -= 1,
        }
    }
    Ok(starts)
}

/// The way to a cell.
#[derive(Debug, Clone, Copy)]
enum Step {
    Both,
    Row,
    Position,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_start_where_their_weights_do() {
        let matrix = [
            [9.0_f32, 9.0, -1.0, -1.0, -1.0, -1.0],
            [-1.0, -1.0, 9.0, -1.0, -1.0, -1.0],
            [-1.0, -1.0, -1.0, 9.0, 9.0, 9.0],
        ];
        let matrix = Tensor::from_slice(matrix.as_flattened()).view([3, 6]);
        assert_eq!(starts(&matrix).unwrap(), [0, 2, 3]);
    }

    #[test]
    fn more_rows_than_positions_share_them() {
        let matrix = Tensor::ones([5, 2], (Kind::Float, tch::Device::Cpu));
        let found = starts(&matrix).unwrap();
        assert_eq!(found.len(), 5);
        assert!(
            found.is_sorted() && found.iter().all(|&start| start < 2),
            "{found:?}"
        );
    }

    #[test]
    fn median_filter_reflects_at_the_ends() {
        let values = Tensor::from_slice(&[5.0_f32, 1.0, 9.0, 3.0, 7.0]).view([1, 1, 5]);
        let found = Vec::<f32>::try_from(median(&values).unwrap().flatten(0, -1)).unwrap();
        // Around the first value: 3 9 1 5 1 9 3.
        assert_eq!(found, [3.0, 5.0, 3.0, 5.0, 3.0]);
    }
}
