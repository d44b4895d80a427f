//! Rows of logits on the CPU.

use tch::{Kind, TchError, Tensor};
use whisper_kernels::{self as kernels, Matrix};

use super::native;

pub(crate) use whisper_kernels::{largest, log_sum_exp};

/// The numbers of a row that only the caller uses. `None` if it is on a GPU.
pub(crate) fn cells_mut(row: &mut Tensor) -> Option<&mut [f32]> {
    native::floats_mut(row).ok()
}

/// The largest logarithms of the softmax of each row, with their places, from the largest to the
/// smallest.
pub(crate) fn top_log_softmax(rows: &Tensor, most: usize) -> Result<Vec<Vec<(usize, f32)>>, TchError> {
    let (_, size) = rows.size2()?;
    let most = most.min(size as usize);
    let Some(Matrix::Float(all)) = native::cells(rows) else {
        let (values, places) = rows
            .f_log_softmax(-1, Kind::Float)?
            .f_topk(most as i64, -1, true, true)?;
        let values = Vec::<f32>::try_from(&values.f_flatten(0, -1)?)?;
        let places = Vec::<i64>::try_from(&places.f_flatten(0, -1)?)?;
        let all: Vec<(usize, f32)> = places.iter().map(|place| *place as usize).zip(values).collect();
        return Ok(all.chunks(most.max(1)).map(<[_]>::to_vec).collect());
    };
    let of_row = |row: &[f32]| {
        let mut best: Vec<(usize, f32)> = Vec::with_capacity(most + 1);
        let mut least = f32::NEG_INFINITY;
        for (place, &value) in row.iter().enumerate() {
            if value > least || best.len() < most {
                let rank = best.partition_point(|(_, other)| *other >= value);
                best.insert(rank, (place, value));
                best.truncate(most);
                if let (Some((_, last)), true) = (best.last(), best.len() == most) {
                    least = *last;
                }
            }
        }
        let sum = kernels::log_sum_exp(row);
        best.iter_mut().for_each(|(_, value)| *value -= sum);
        best
    };
    Ok(all.chunks_exact(size as usize).map(of_row).collect())
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn top_of_each_row_is_that_of_libtorch() {
        let _no_grad = tch::no_grad_guard();
        let rows = Tensor::randn([3, 1000], FLOAT);
        let _ = rows.narrow(1, 0, 500).fill_(f64::NEG_INFINITY);
        let (values, places) = rows.log_softmax(-1, Kind::Float).topk(10, -1, true, true);
        for (row, found) in top_log_softmax(&rows, 10).unwrap().into_iter().enumerate() {
            assert_eq!(found.len(), 10);
            for (rank, (place, value)) in found.into_iter().enumerate() {
                let at = [row as i64, rank as i64];
                assert_eq!(place as i64, places.int64_value(&at));
                assert!((f64::from(value) - values.double_value(&at)).abs() < 1e-5);
            }
        }
    }
}
