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
pub const REALTIME_FACTOR: &[f64] = &[0.01, 0.03, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Loading a model, in seconds: from the page cache up to gigabytes over a slow disk.
pub const MODEL_LOAD: &[f64] = &[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_ascend_and_contain_those_of_the_platform_and_of_published_queries() {
        let sets: [(&[f64], &[&[f64]]); 6] = [
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
                &[&[0.01, 0.03, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0]],
            ),
            (
                MODEL_LOAD,
                &[&[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0]],
            ),
        ];
        for (bounds, required) in sets {
            assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{bounds:?}");
            for bound in required.iter().copied().flatten() {
                assert!(bounds.contains(bound), "{bound} is missing in {bounds:?}");
            }
        }
    }
}
