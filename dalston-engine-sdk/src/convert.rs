//! `?` in engines: every error becomes a [`TaskError`].

use std::error::Error;

#[cfg(feature = "audio")]
use crate::audio::AudioErrorKind;
use crate::error::{BoxError, TaskError, TaskErrorKind};
use crate::stage::ConfigProblem;

/// The bound includes `anyhow::Error`, boxed errors and texts, which are no [`Error`]s themselves.
impl<E: Into<BoxError>> From<E> for TaskError {
    fn from(error: E) -> Self {
        let error = error.into();
        let (kind, code) = class_of(&*error).unwrap_or((TaskErrorKind::Retryable, "error"));
        Self::new(kind, code, error)
    }
}

/// Kind and code of an error that this crate made, also if it is the cause of another one.
fn class_of(error: &(dyn Error + 'static)) -> Option<(TaskErrorKind, &'static str)> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<ConfigProblem>() {
            return Some((TaskErrorKind::Permanent, "invalid_config"));
        }
        #[cfg(feature = "audio")]
        if let Some(kind) = error.downcast_ref::<AudioErrorKind>() {
            return Some((kind.task_error_kind(), kind.code()));
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stage::{ConfigError, TranscribeRequest};

    fn convert<E>(error: E) -> TaskError
    where
        TaskError: From<E>,
    {
        let failed = || -> Result<(), TaskError> { Err(error)? };
        failed().unwrap_err()
    }

    fn parts(error: &TaskError) -> (TaskErrorKind, &str, String) {
        (error.kind(), error.code(), error.to_string())
    }

    #[test]
    fn texts_and_boxed_and_anyhow_errors_pass_the_question_mark() {
        let io = || std::io::Error::other("no server");
        let boxed: Box<dyn Error + Send + Sync> = Box::new(io());
        for error in [
            convert("no server"),
            convert("no server".to_owned()),
            convert(io()),
            convert(boxed),
            convert(anyhow::anyhow!("no server")),
            convert(anyhow::Error::from(io())),
        ] {
            let expected = (TaskErrorKind::Retryable, "error", "no server".to_owned());
            assert_eq!(parts(&error), expected);
        }
        let error = convert(anyhow::Error::from(io()).context("asking"));
        assert_eq!(error.to_string(), "asking: no server");
    }

    #[test]
    fn causes_inside_boxed_and_anyhow_errors_are_found() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        for error in [
            convert(anyhow::Error::from(full()).context("writing")),
            convert(Box::<dyn Error + Send + Sync>::from(full())),
        ] {
            assert!(error.worker_fault().is_some(), "{error}");
        }
    }

    #[test]
    fn invalid_options_are_permanent_inside_every_error() {
        let error = || -> ConfigError {
            let config = json!({"beam_size": 0});
            TranscribeRequest::from_config(config.as_object().unwrap()).unwrap_err()
        };
        let text = "config key beam_size is 0: expected an integer of at least 1";
        for (error, text) in [
            (convert(error()), text.to_owned()),
            (
                convert(Box::<dyn Error + Send + Sync>::from(error())),
                text.to_owned(),
            ),
            (convert(anyhow::Error::from(error())), text.to_owned()),
            (
                convert(anyhow::Error::from(error()).context("reading options")),
                format!("reading options: {text}"),
            ),
        ] {
            assert_eq!(parts(&error), (TaskErrorKind::Permanent, "invalid_config", text));
        }
    }

    #[cfg(feature = "audio")]
    #[test]
    fn audio_that_cannot_be_read_is_permanent_inside_every_error() {
        use crate::audio::{AudioFormat, decode_file};

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.wav");
        std::fs::write(&path, "These are only my notes.").unwrap();
        let error = |path| decode_file(path, AudioFormat::MONO_16K, directory.path()).unwrap_err();
        let missing = directory.path().join("none.wav");
        for error in [
            convert(error(&path)),
            convert(error(&missing)),
            convert(anyhow::Error::from(error(&path))),
            convert(anyhow::Error::from(error(&path)).context("decoding")),
        ] {
            let (kind, code, text) = parts(&error);
            assert_eq!(
                (kind, code),
                (TaskErrorKind::Permanent, "unreadable_audio"),
                "{text}"
            );
        }
    }

    #[cfg(feature = "audio")]
    #[test]
    fn audio_errors_of_the_input_are_permanent_with_a_code() {
        use std::time::Duration;

        let io = |kind| std::io::Error::from(kind);
        let table = [
            (
                AudioErrorKind::Unreadable(io(std::io::ErrorKind::NotFound)),
                "unreadable_audio",
            ),
            (AudioErrorKind::Directory, "unreadable_audio"),
            (AudioErrorKind::Empty, "unreadable_audio"),
            (AudioErrorKind::NotAudio, "unreadable_audio"),
            (AudioErrorKind::NoMedia("a web page"), "unreadable_audio"),
            (
                AudioErrorKind::UnsupportedFormat("an AMR file"),
                "unreadable_audio",
            ),
            (AudioErrorKind::NoTrack, "unreadable_audio"),
            (
                AudioErrorKind::UnsupportedCodec("AC-3".to_owned()),
                "unreadable_audio",
            ),
            (AudioErrorKind::TruncatedHeader, "unreadable_audio"),
            (
                AudioErrorKind::Damaged("no frames".to_owned()),
                "unreadable_audio",
            ),
            (AudioErrorKind::SampleRate(1), "unreadable_audio"),
            (AudioErrorKind::Channels(0), "unreadable_audio"),
            (
                AudioErrorKind::ImpossibleSample { value: 1e9, at: 0.0 },
                "unreadable_audio",
            ),
            (AudioErrorKind::TooLong(Duration::from_secs(1)), "audio_too_long"),
            (AudioErrorKind::NoSamples, "unreadable_audio"),
        ];
        for (kind, code) in table {
            let error = convert(kind);
            let (kind, found, text) = parts(&error);
            assert_eq!((kind, found), (TaskErrorKind::Permanent, code), "{text}");
            assert_eq!(error.worker_fault(), None, "{text}");
        }
    }

    #[cfg(feature = "audio")]
    #[test]
    fn audio_errors_of_the_worker_are_not_permanent() {
        use crate::error::WorkerFault;

        let io = |kind| std::io::Error::from(kind);
        let slow = AudioErrorKind::Unreadable(io(std::io::ErrorKind::TimedOut));
        assert_eq!(convert(slow).kind(), TaskErrorKind::Retryable);
        let spool = convert(AudioErrorKind::Spool(io(std::io::ErrorKind::PermissionDenied)));
        assert_eq!(
            (spool.kind(), spool.worker_fault()),
            (TaskErrorKind::Retryable, Some(WorkerFault::Disk))
        );
        let cancelled = convert(AudioErrorKind::Cancelled);
        assert_eq!(
            (cancelled.kind(), cancelled.code()),
            (TaskErrorKind::Cancelled, "cancelled")
        );
    }
}
