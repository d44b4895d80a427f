//! Log-mel features, as OpenAI's Whisper defines them.

use tch::{Device, Kind, TchError, Tensor};

use crate::config::FeatureConfig;

/// Turns a window of samples into log-mel features.
///
/// Short windows are padded with zero *samples*. Zero *features* are not silence and make small
/// models invent words.
#[derive(Debug)]
pub(crate) struct LogMel {
    /// bins × frequencies
    filters: Tensor,
    hann: Tensor,
    n_fft: i64,
    hop: i64,
    samples: usize,
    device: Device,
}

impl LogMel {
    /// Prepares the filters and the window on `device`.
    ///
    /// # Errors
    /// libtorch could not allocate them.
    pub(crate) fn new(config: &FeatureConfig, device: Device) -> Result<Self, TchError> {
        let filters = mel_filters(config);
        let shape = [config.feature_size, 1 + config.n_fft / 2];
        Ok(Self {
            filters: Tensor::f_from_slice(&filters)?
                .f_reshape(shape)?
                .f_to_device(device)?,
            hann: Tensor::f_hann_window_periodic(config.n_fft, true, (Kind::Float, device))?,
            n_fft: config.n_fft,
            hop: config.hop_length,
            samples: config.window_samples(),
            device,
        })
    }

    /// The features of one window: 1 × bins × frames, float32. Samples beyond the window are
    /// ignored.
    ///
    /// # Errors
    /// libtorch ran out of memory.
    pub(crate) fn compute(&self, samples: &[f32]) -> Result<Tensor, TchError> {
        let used = samples.get(..self.samples).unwrap_or(samples);
        // The binding of stft cannot centre: it always sets an argument that libtorch forbids then.
        let centred = centred(used, self.samples, self.n_fft as usize / 2);
        let centred = Tensor::f_from_slice(&centred)?.f_to_device(self.device)?;
        let spectrum = centred.f_stft(
            self.n_fft,
            self.hop,
            self.n_fft,
            Some(&self.hann),
            false,
            true,
            true,
            false,
        )?;
        // Centring yields one frame more than the window has hops.
        let frames = spectrum.size2()?.1 - 1;
        let power = spectrum.f_narrow(1, 0, frames)?.f_abs()?.f_square_()?;
        let mut log = self.filters.f_matmul(&power)?.f_clamp_min_(1e-10)?.f_log10_()?;
        let floor = log.f_max()?.f_sub_scalar(8.0)?;
        log.f_clamp_min_tensor_(&floor)?
            .f_add_scalar_(4.0)?
            .f_mul_scalar_(0.25)?
            .f_unsqueeze(0)
    }
}

/// A window of `len` samples, filled up with silence, with `side` samples on both sides so that
/// frames are centred on their sample: the window reflected at its ends.
fn centred(samples: &[f32], len: usize, side: usize) -> Vec<f32> {
    let at = |index: usize| samples.get(index).copied().unwrap_or(0.0);
    let mut centred = Vec::with_capacity(len + 2 * side);
    centred.extend((1..=side).rev().map(at));
    centred.extend_from_slice(samples);
    centred.resize(side + len, 0.0);
    centred.extend((2..side + 2).map(|back| at(len.saturating_sub(back))));
    centred
}

/// Triangular filters on Slaney's mel scale, each of unit area: bins × frequencies, row by row.
fn mel_filters(config: &FeatureConfig) -> Vec<f32> {
    let frequencies = 1 + config.n_fft as usize / 2;
    let bins = config.feature_size as usize;
    let nyquist = config.sampling_rate as f64 / 2.0;
    // Whisper's filters end at 8 kHz, half the sampling rate.
    let top = hertz_to_mel(nyquist.min(8000.0));
    let edges: Vec<f64> = (0..bins + 2)
        .map(|i| mel_to_hertz(top * i as f64 / (bins + 1) as f64))
        .collect();

    let mut filters = Vec::with_capacity(bins * frequencies);
    for edge in edges.windows(3) {
        let &[low, centre, high] = edge else { continue };
        let area = 2.0 / (high - low);
        for i in 0..frequencies {
            let hertz = nyquist * i as f64 / (frequencies - 1).max(1) as f64;
            let rising = (hertz - low) / (centre - low);
            let falling = (high - hertz) / (high - centre);
            filters.push((rising.min(falling).max(0.0) * area) as f32);
        }
    }
    filters
}

/// Slaney's scale is linear to 1 kHz (15 mel) and logarithmic above, 27 mel per factor 6.4.
const LINEAR_HERTZ_PER_MEL: f64 = 200.0 / 3.0;
const LOG_START_HERTZ: f64 = 1000.0;
const LOG_START_MEL: f64 = 15.0;

fn log_step() -> f64 {
    6.4_f64.ln() / 27.0
}

fn hertz_to_mel(hertz: f64) -> f64 {
    if hertz < LOG_START_HERTZ {
        hertz / LINEAR_HERTZ_PER_MEL
    } else {
        LOG_START_MEL + (hertz / LOG_START_HERTZ).ln() / log_step()
    }
}

fn mel_to_hertz(mel: f64) -> f64 {
    if mel < LOG_START_MEL {
        mel * LINEAR_HERTZ_PER_MEL
    } else {
        LOG_START_HERTZ * ((mel - LOG_START_MEL) * log_step()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_filled_up_and_reflected_at_its_ends() {
        let whole: Vec<f32> = (1..=8).map(|n| n as f32).collect();
        for samples in [&whole[..], &whole[..5], &[]] {
            let plain = Tensor::from_slice(samples).constant_pad_nd([0, 8 - samples.len() as i64]);
            let plain = plain.unsqueeze(0).reflection_pad1d([3, 3]).squeeze_dim(0);
            let expected = Vec::<f32>::try_from(plain).unwrap();
            assert_eq!(centred(samples, 8, 3), expected);
        }
    }
}
