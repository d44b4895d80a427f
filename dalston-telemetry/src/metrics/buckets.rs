//! The bounds of histograms.
//!
//! A quantile above the last bound is reported as that bound, so the bounds must reach the longest
//! durations that occur. Each list contains all bounds of published queries and of the existing
//! platform: without one of them, `le` selectors and recording rules would break.

/// Instruments of OpenTelemetry in `s` without bounds of their own, in seconds: from a look-up to a
/// task of some minutes.
pub const SECONDS: &[f64] = REQUEST_DURATION;

/// Instruments of OpenTelemetry in `1` without bounds of their own: a part of a whole, from 0 to 1.
pub const RATIO: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// The processing of a task, in seconds: from a clip of two seconds to an hour of audio on a CPU.
pub const TASK_DURATION: &[f64] = &[
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0,
];

/// The wait of a task in the queue, in seconds: milliseconds on an idle engine, minutes in a
/// backlog, an hour if an engine has to be started first.
pub const QUEUE_WAIT: &[f64] = &[
    0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
];

/// The transfer of a task's data from or to storage, in seconds: from a cache hit of local storage
/// to gigabytes over a slow network.
pub const STORAGE: &[f64] = &[
    0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

/// The length of the audio of a task, in seconds: from a voice command to a conference of four
/// hours.
pub const AUDIO_DURATION: &[f64] = &[
    1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0,
];

/// Processing time divided by audio time: 0.01 is a hundred times faster than real time, and above
/// 1 is slower. Small models on a GPU reach 0.001.
pub const REALTIME_FACTOR: &[f64] = &[
    0.001, 0.003, 0.005, 0.01, 0.03, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0,
];

/// The load of a model, in seconds: from the page cache to gigabytes from a slow disk.
pub const MODEL_LOAD: &[f64] = &[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// The wait for a model, in seconds: from memory, from the disk or over the network.
pub const MODEL_ACQUIRE: &[f64] = &[
    0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// Tasks that an engine gets at once.
pub const BATCH_SIZE: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Segments of speech in a recording: from a command to hours of conversation.
pub const VAD_SEGMENTS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0,
];

/// A request at the gateway, in seconds: from a look-up to the upload of an hour of audio.
pub const REQUEST_DURATION: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

/// A job from its creation to its end, in seconds: from clips of seconds to hours of audio in a
/// backlog.
pub const JOB_DURATION: &[f64] = &[
    1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0,
];

/// The planning of the tasks of a job, in seconds.
pub const DAG_BUILD: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// The allocation of a worker to a session, in seconds: from a look-up to the wait for a free
/// worker.
pub const ALLOCATION: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// A realtime session, in seconds: from a command to a conference.
pub const SESSION_DURATION: &[f64] = &[
    1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0,
];

/// The resampling of a chunk of about 100 ms of audio, in seconds.
pub const RESAMPLE: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1];

/// The processing of a chunk of audio from its arrival, in seconds.
pub const CHUNK_LATENCY: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// An attempt to deliver a webhook, in seconds: up to the time-out of a receiver without an answer.
pub const DELIVERY: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// A step of the audio pipeline, in seconds.
pub const PIPELINE_STEP: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// A score from 0 to 1.
pub const SCORE: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_ascend_and_contain_all_published_ones() {
        let sets: [(&[f64], &[&[f64]]); 18] = [
            (
                TASK_DURATION,
                &[
                    &[
                        0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0,
                        3600.0,
                    ],
                    &[
                        0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
                    ],
                ],
            ),
            (
                QUEUE_WAIT,
                &[
                    &[0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0],
                    &[
                        0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
                    ],
                ],
            ),
            (STORAGE, &[&[0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0]]),
            (
                AUDIO_DURATION,
                &[&[
                    10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0,
                ]],
            ),
            (
                REALTIME_FACTOR,
                &[&[0.001, 0.01, 0.03, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0]],
            ),
            (
                MODEL_LOAD,
                &[&[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0]],
            ),
            (
                MODEL_ACQUIRE,
                &[&[0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]],
            ),
            (VAD_SEGMENTS, &[&[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0]]),
            (
                REQUEST_DURATION,
                &[&[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]],
            ),
            (
                JOB_DURATION,
                &[&[1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]],
            ),
            (DAG_BUILD, &[&[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25]]),
            (ALLOCATION, &[&[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5]]),
            (
                SESSION_DURATION,
                &[&[1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0]],
            ),
            (RESAMPLE, &[&[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05]]),
            (
                CHUNK_LATENCY,
                &[&[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]],
            ),
            (DELIVERY, &[&[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]]),
            (PIPELINE_STEP, &[]),
            (SCORE, &[]),
        ];
        for (bounds, required) in sets {
            assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{bounds:?}");
            for bound in required.iter().copied().flatten() {
                assert!(bounds.contains(bound), "{bound} is missing in {bounds:?}");
            }
        }
    }
}
