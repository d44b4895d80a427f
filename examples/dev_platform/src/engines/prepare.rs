//! The engine of the stage `prepare`: a recording becomes files that the other stages can read.

use std::time::Instant;

use dalston_engine_sdk::audio::{Audio, AudioFormat, Decoder, probe};
use dalston_engine_sdk::stage::{AudioMedia, Preparation};
use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, OutputFile, Stage, StartContext, TaskContext, TaskError,
    TaskRequest,
};
use dalston_telemetry::services::audio_pipeline::AudioPipelineMetrics;
use serde_json::json;
use tracing::info;

use super::Hold;
use super::loudness::Loudness;
use super::wav::WavWriter;

/// Decodes and resamples a recording, and splits its channels if the task asks for it. The files
/// have 16-bit samples and one channel.
///
/// The loudness of the recording is a file of the answer, because the platform accepts no further
/// keys in the answer itself.
#[derive(Debug, Default)]
pub(crate) struct Prepare {
    hold: Hold,
    /// Set at the start.
    metrics: Option<AudioPipelineMetrics>,
}

/// How many frames are converted at a time.
const WINDOW: usize = 16_000;

impl Engine for Prepare {
    type Model = ();
    type Output = Preparation;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("audio-prepare", env!("CARGO_PKG_VERSION")).stage(Stage::Prepare)
    }

    fn start(&mut self, cx: &StartContext) {
        self.metrics = Some(AudioPipelineMetrics::register(cx.metrics()));
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), task: &TaskRequest, cx: &TaskContext) -> Result<Preparation, TaskError> {
        self.hold.wait(cx)?;
        let options = task.prepare()?;
        let recording = task.require_input("audio")?;
        let header = probe(recording.path())?;
        let source_channels = header.channels.unwrap_or(1).max(1);
        let channels = match options.split_channels {
            true => u16::try_from(source_channels).unwrap_or(1),
            false => 1,
        };
        let format = AudioFormat::new(options.target_sample_rate, channels);
        let audio = Decoder::new(format)
            .temp_dir(cx.temp_dir())
            .decode_while(recording.path(), |_| cx.cancel_reason().is_none())?;
        cx.progress(0.5);
        let names: Vec<String> = match options.split_channels {
            true => (0..channels)
                .map(|channel| format!("prepared_audio_ch{channel}"))
                .collect(),
            false => vec!["prepared_audio".to_owned()],
        };
        let loudness = self.write_channels(&audio, &names, cx)?;
        report(loudness, cx)?;
        let duration = audio.duration().as_secs_f64();
        let rate = audio.sample_rate();
        let mut files = Vec::new();
        for (channel, name) in (0_u32..).zip(&names) {
            let file = OutputFile::new(name, "audio", cx.temp_dir().join(format!("{name}.wav")))
                .role("prepared")
                .media_type("audio/wav")
                .channel(channel);
            cx.add_output_file(file)?;
            let id = format!("{}:{name}", cx.info().task_id);
            files.push(AudioMedia::new(id, "wav", duration, rate, 1).bit_depth(16));
        }
        let source_channels = u32::try_from(source_channels).unwrap_or(1);
        let source_rate = header.sample_rate.unwrap_or(rate);
        let id = recording.artifact().artifact_id.as_str();
        let mut source = AudioMedia::new(
            id,
            header.container.to_lowercase(),
            duration,
            source_rate,
            source_channels,
        );
        if let Ok(known) = task.media() {
            source.bit_depth = known.bit_depth;
        }
        let preparation = Preparation::new(files)
            .split_channels(options.split_channels)
            .source_media(source);
        Ok(audio.warnings().iter().fold(preparation, Preparation::warning))
    }
}

impl Prepare {
    pub(super) fn new(hold: Hold) -> Self {
        Self { hold, metrics: None }
    }

    /// Writes a file for each channel. Returns the loudness of all.
    fn write_channels(
        &self,
        audio: &Audio,
        names: &[String],
        cx: &TaskContext,
    ) -> Result<Option<f64>, TaskError> {
        let began = Instant::now();
        let mut files = Vec::new();
        for name in names {
            let path = cx.temp_dir().join(format!("{name}.wav"));
            files.push(WavWriter::create(&path, audio.sample_rate())?);
        }
        let mut loudness = Loudness::new(names.len(), audio.sample_rate());
        let mut chunk_began = began;
        for window in audio.windows(WINDOW) {
            cx.check_cancelled()?;
            let window = window?;
            loudness.add(&window);
            for frame in window.chunks_exact(files.len()) {
                for (file, sample) in files.iter_mut().zip(frame) {
                    file.push(*sample)?;
                }
            }
            if let Some(metrics) = &self.metrics {
                metrics.chunk_processed(chunk_began.elapsed());
            }
            chunk_began = Instant::now();
        }
        files.into_iter().try_for_each(WavWriter::finish)?;
        if let Some(metrics) = &self.metrics {
            metrics.encoded(began.elapsed());
        }
        Ok(loudness.integrated())
    }
}

/// Adds the loudness to the answer.
fn report(loudness: Option<f64>, cx: &TaskContext) -> Result<(), TaskError> {
    info!(integrated_lufs = loudness, "recording_measured");
    let path = cx.temp_dir().join("loudness.json");
    std::fs::write(&path, json!({"integrated_lufs": loudness}).to_string())?;
    let file = OutputFile::new("loudness", "loudness", path).media_type("application/json");
    cx.add_output_file(file)
}

#[cfg(test)]
mod tests {
    use dalston_engine_sdk::testing::EngineHarness;
    use serde_json::{Value, json};

    use super::*;

    fn stereo(directory: &std::path::Path) -> std::path::PathBuf {
        let path = directory.join("call.wav");
        let mut bytes = Vec::new();
        let data: Vec<u8> = (0..8_000)
            .flat_map(|n: i32| [((n % 100) * 100) as i16, -4_000])
            .flat_map(i16::to_le_bytes)
            .collect();
        bytes.extend_from_slice(b"RIFF");
        bytes.extend_from_slice(&(36 + data.len() as u32).to_le_bytes());
        bytes.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x02\0");
        bytes.extend_from_slice(&8_000_u32.to_le_bytes());
        bytes.extend_from_slice(&32_000_u32.to_le_bytes());
        bytes.extend_from_slice(b"\x04\0\x10\0data");
        bytes.extend_from_slice(&(data.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&data);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn stereo_is_mixed_or_split_and_resampled() {
        let directory = tempfile::tempdir().unwrap();
        for (split, names) in [
            (false, &["prepared_audio"][..]),
            (true, &["prepared_audio_ch0", "prepared_audio_ch1"]),
        ] {
            let report = EngineHarness::new(Prepare::default())
                .input("audio", stereo(directory.path()))
                .config("split_channels", split)
                .run_blocking();
            let output = report.output();
            assert_eq!(output["split_channels"], split);
            let files = output["channel_files"].as_array().unwrap();
            assert_eq!(files.len(), names.len());
            for file in files {
                assert_eq!(
                    (&file["sample_rate"], &file["channels"]),
                    (&json!(16_000), &json!(1))
                );
                assert_eq!(file["duration"], 1.0);
            }
            let loudness: Value = serde_json::from_slice(report.artifact("loudness")).unwrap();
            let lufs = loudness["integrated_lufs"].as_f64().unwrap();
            assert!((-40.0..0.0).contains(&lufs), "{loudness}");
            assert_eq!(output["source_media"]["channels"], 2);
            assert_eq!(output["source_media"]["sample_rate"], 8_000);
        }
    }
}
