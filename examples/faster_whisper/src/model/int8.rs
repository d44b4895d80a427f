//! Matrices of int8 with a scale for 64 weights of a row, for the decoder, whose speed is that of
//! reading its weights. Only the weights lose precision.

use std::borrow::Cow;

use tch::{TchError, Tensor};
use whisper_kernels::{self as kernels, GROUP, Matrix};

use super::{few_rows, native};

/// y = x·Wᵀ + b
#[derive(Debug)]
pub(crate) struct Int8 {
    /// outputs × inputs
    weight: Vec<i8>,
    /// outputs × groups
    scales: Vec<f32>,
    /// Empty if there is none.
    bias: Vec<f32>,
    inputs: usize,
}

impl Int8 {
    /// Rounds the weight (outputs × inputs) of the CPU.
    pub(super) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self, TchError> {
        let (outputs, inputs) = weight.size2()?;
        let (outputs, inputs) = (outputs as usize, inputs as usize);
        let values = few_rows::floats(weight)?;
        let groups = inputs.div_ceil(GROUP);
        let parts = native::parallel(outputs, 1 << 8, |range| {
            let mut cells = vec![0_i8; range.len() * inputs];
            let mut scales = vec![0.0_f32; range.len() * groups];
            let rows = values.get(range.start * inputs..range.end * inputs);
            kernels::round(rows.unwrap_or_default(), inputs, &mut cells, &mut scales);
            (cells, scales)
        })?;
        let mut whole = Self {
            weight: Vec::with_capacity(values.len()),
            scales: Vec::with_capacity(outputs * groups),
            bias: bias.map_or(Ok(Vec::new()), |bias| few_rows::floats(bias).map(Cow::into_owned))?,
            inputs,
        };
        for (_, (cells, scales)) in parts {
            whole.weight.extend(cells);
            whole.scales.extend(scales);
        }
        Ok(whole)
    }

    /// … × inputs to … × outputs, in float32. Adds `other`, which has the shape of the result, if
    /// there is one.
    pub(super) fn forward(&self, input: &Tensor, other: Option<&Tensor>) -> Result<Tensor, TchError> {
        let (matrix, bias) = self.layer();
        few_rows::multiply(matrix, bias, input, other)
    }

    /// The weight and the bias.
    pub(super) fn layer(&self) -> (Matrix<'_>, &[f32]) {
        (Matrix::Int8(&self.weight, &self.scales), &self.bias)
    }

    /// The rows of these numbers: 1 × ids × inputs, in float32.
    pub(super) fn rows(&self, ids: &[i64]) -> Result<Tensor, TchError> {
        let mut found = Vec::with_capacity(ids.len() * self.inputs);
        let groups = self.inputs.div_ceil(GROUP);
        for &id in ids {
            let index = id as usize;
            let row = self.weight.get(index * self.inputs..(index + 1) * self.inputs);
            let scales = self.scales.get(index * groups..(index + 1) * groups);
            let (Some(row), Some(scales)) = (row, scales) else {
                return Err(TchError::Shape(format!("there is no row {id}")));
            };
            for (group, scale) in row.chunks(GROUP).zip(scales) {
                found.extend(group.iter().map(|&value| f32::from(value) * scale));
            }
        }
        Tensor::f_from_slice(&found)?.f_view([1, ids.len() as i64, self.inputs as i64])
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn random(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn product_differs_by_the_rounding_of_weights() {
        // 70 is no multiple of a group, and 6 none of a block of rows.
        for inputs in [70, 128] {
            let (input, weight) = (random([6, inputs]), random([33, inputs]));
            let bias = Tensor::randn([33], (Kind::Float, Device::Cpu));
            let layer = Int8::new(&weight, Some(&bias)).unwrap();
            let ids: Vec<i64> = (0..33).collect();
            let rounded = layer.rows(&ids).unwrap().squeeze_dim(0);
            let of_weight = (&rounded - &weight).abs().max().double_value(&[]);
            assert!(of_weight < 0.02, "{of_weight}");
            let found = layer.forward(&input, None).unwrap();
            let off = (&found - input.linear(&rounded, Some(&bias))).abs().max();
            assert!(off.double_value(&[]) < 0.002, "{off:?}");
            assert_eq!(found.size(), [6, 33]);
        }
    }

    #[test]
    fn row_has_the_same_result_alone_and_among_others() {
        let (input, weight) = (random([9, 64]), random([40, 64]));
        let layer = Int8::new(&weight, None).unwrap();
        let together = layer.forward(&input, None).unwrap();
        for row in 0..9 {
            assert_eq!(
                layer.forward(&input.narrow(0, row, 1), None).unwrap(),
                together.narrow(0, row, 1)
            );
        }
    }

    #[test]
    fn not_a_number_stays_one() {
        let layer = Int8::new(&random([3, 20]), None).unwrap();
        let input = Tensor::from_slice(&[f32::NAN; 20]).view([1, 20]);
        assert!(
            layer
                .forward(&input, None)
                .unwrap()
                .isnan()
                .all()
                .int64_value(&[])
                == 1
        );
    }

    #[test]
    fn rows_are_those_of_the_weight() {
        let weight = random([8, 16]);
        let found = Int8::new(&weight, None).unwrap().rows(&[5, 0]).unwrap();
        let expected = weight
            .index_select(0, &Tensor::from_slice(&[5_i64, 0]))
            .unsqueeze(0);
        assert!((found - expected).abs().max().double_value(&[]) < 0.02);
    }
}
