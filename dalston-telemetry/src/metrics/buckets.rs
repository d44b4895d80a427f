//! The bounds of the histograms, and why they reach as far as they do.
//!
//! A quantile that lies above the last bound is reported as that bound, so the bounds must reach the durations that
//! occur. Each list contains all bounds that published queries and the existing platform use: dropping one would
//! break `le` selectors and recording rules.

/// Work on one task, in seconds: from a warm two-second clip to an hour of recording on a CPU.
pub const TASK_DURATION: &[f64] = &[
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0,
];

/// Time between being queued and being read, in seconds: milliseconds on an idle engine, minutes in a backlog, up to
/// an hour when an engine has to be started first.
pub const QUEUE_WAIT: &[f64] = &[
    0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
];

/// Moving a task's data from or to storage, in seconds: cache hits of local storage up to gigabytes from afar.
pub const STORAGE: &[f64] = &[
    0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

/// Length of the audio of one task, in seconds: voice commands up to conferences of four hours.
pub const AUDIO_DURATION: &[f64] = &[
    1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0,
];

/// Processing time divided by audio time: 0.01 is a hundred times faster than the recording, above 1 is slower.
/// Small models on a GPU reach 0.001.
pub const REALTIME_FACTOR: &[f64] = &[
    0.001, 0.003, 0.005, 0.01, 0.03, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0,
];

/// Loading a model, in seconds: from the page cache up to gigabytes over a slow disk.
pub const MODEL_LOAD: &[f64] = &[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// Waiting for a model, in seconds: it is there, or comes from the disk or over the network.
pub const MODEL_ACQUIRE: &[f64] = &[
    0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// Stretches of speech in a recording: a command up to hours of conversation.
pub const VAD_SEGMENTS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0,
];

/// Answering a request at the gateway, in seconds: from a look-up to the upload of an hour of audio.
pub const REQUEST_DURATION: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

/// A job from its creation to its end, in seconds: clips of seconds up to hours of recording in a backlog.
pub const JOB_DURATION: &[f64] = &[
    1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0,
];

/// Working out which tasks a job needs, in seconds.
pub const DAG_BUILD: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Finding a worker for a session, in seconds: a look at the registry up to a wait for one that is free.
pub const ALLOCATION: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// A realtime session, in seconds: a command up to a conference.
pub const SESSION_DURATION: &[f64] = &[
    1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0,
];

/// Resampling a piece of audio of a tenth of a second or so, in seconds.
pub const RESAMPLE: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1];

/// A piece of audio from its arrival to its end, in seconds.
pub const CHUNK_LATENCY: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// An attempt to deliver a webhook, in seconds: to the time-out of a receiver that does not answer.
pub const DELIVERY: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// A step of the pipeline from a voice to its answer, in seconds.
pub const PIPELINE_STEP: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// A score from 0 to 1.
pub const SCORE: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_ascend_and_contain_those_of_the_platform_and_of_published_queries() {
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
