//! Which waiting tasks make a batch.

use std::sync::Arc;
use std::time::Duration;

use dalston_telemetry::services::engine::BatchDispatch;
use tokio::time::Instant;

use super::class::Class;
use crate::batch::Batching;
use crate::model_id::ModelId;

/// How many waiting tasks are looked at for a batch.
const LOOK_AHEAD: usize = 32;
/// A task that has waited longer is not overtaken by later ones that fit into a batch.
const LONGEST_OVERTAKEN: Duration = Duration::from_secs(2);

/// A task that waits for an inference thread, as batches see it.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) class: Class,
    pub(super) model: ModelId,
    /// Tasks with equal keys can share a batch. `None` if the task runs alone.
    pub(super) key: Option<Arc<str>>,
    /// The length of its audio, in seconds.
    pub(super) audio: f64,
    pub(super) since: Instant,
    /// When it waits no longer for others.
    pub(super) ripe_at: Instant,
}

impl Candidate {
    fn fits(&self, first: &Self) -> bool {
        self.key.is_some() && self.key == first.key && self.model == first.model
    }
}

/// A batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Formed {
    /// The places of its tasks, ascending. The first one is zero.
    pub(super) members: Vec<usize>,
    /// Why it has no more tasks.
    pub(super) reason: BatchDispatch,
}

/// The batch of the first waiting task. `None` if that should wait for more tasks.
pub(super) fn form<'a>(
    mut waiting: impl Iterator<Item = &'a Candidate>,
    limits: &Batching,
    now: Instant,
) -> Option<Formed> {
    let first = waiting.next()?;
    let mut members = vec![0];
    let mut longest = first.audio;
    let mut reason = BatchDispatch::Waited;
    if first.key.is_none() || limits.max_tasks <= 1 {
        return Some(Formed { members, reason });
    }
    for (at, candidate) in (1..=LOOK_AHEAD).zip(waiting) {
        if !candidate.fits(first) {
            if now.duration_since(candidate.since) > LONGEST_OVERTAKEN {
                break;
            }
            continue;
        }
        let padded = longest.max(candidate.audio) * (members.len() + 1) as f64;
        if limits.max_audio_seconds.is_some_and(|limit| padded > limit) {
            reason = BatchDispatch::Cost;
            break;
        }
        longest = longest.max(candidate.audio);
        members.push(at);
        if members.len() >= limits.max_tasks {
            reason = BatchDispatch::Full;
            break;
        }
    }
    let is_due = reason != BatchDispatch::Waited || now >= first.ripe_at;
    is_due.then_some(Formed { members, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(key: &str, audio: f64, waited: u64) -> Candidate {
        let since = Instant::now() - Duration::from_secs(waited);
        Candidate {
            class: Class::Batch,
            model: "tiny".into(),
            key: (!key.is_empty()).then(|| key.into()),
            audio,
            since,
            ripe_at: since,
        }
    }

    fn formed(waiting: &[Candidate], limits: &Batching) -> (Vec<usize>, BatchDispatch) {
        let formed = form(waiting.iter(), limits, Instant::now()).unwrap();
        (formed.members, formed.reason)
    }

    #[test]
    fn tasks_with_the_first_one_s_key_and_model_join_it() {
        let mut waiting = ["en", "de", "en", "", "en"].map(|key| candidate(key, 1.0, 0));
        let limits = Batching::up_to(8);
        assert_eq!(formed(&waiting, &limits), (vec![0, 2, 4], BatchDispatch::Waited));
        waiting[2].model = "base".into();
        assert_eq!(formed(&waiting, &limits), (vec![0, 4], BatchDispatch::Waited));
        waiting[0].key = None;
        assert_eq!(formed(&waiting, &limits), (vec![0], BatchDispatch::Waited));
    }

    #[test]
    fn batch_ends_at_its_number_of_tasks() {
        let waiting = ["en"; 4].map(|key| candidate(key, 1.0, 0));
        assert_eq!(
            formed(&waiting, &Batching::up_to(3)),
            (vec![0, 1, 2], BatchDispatch::Full)
        );
        assert_eq!(formed(&waiting, &Batching::up_to(1)).0, [0]);
    }

    #[test]
    fn batch_ends_at_its_padded_audio() {
        let waiting = [10.0, 30.0, 5.0].map(|audio| candidate("en", audio, 0));
        let limits = Batching::up_to(8);
        let at_most = |seconds| formed(&waiting, &limits.clone().audio_seconds(seconds));
        assert_eq!(at_most(60.0), (vec![0, 1], BatchDispatch::Cost));
        assert_eq!(at_most(90.0), (vec![0, 1, 2], BatchDispatch::Waited));
        // The first one runs, however long it is.
        assert_eq!(at_most(1.0), (vec![0], BatchDispatch::Cost));
    }

    #[test]
    fn task_that_has_waited_long_is_not_overtaken() {
        let mut waiting = [("en", 9), ("de", 1), ("en", 0)].map(|(key, waited)| candidate(key, 1.0, waited));
        let limits = Batching::up_to(8);
        assert_eq!(formed(&waiting, &limits).0, [0, 2]);
        waiting[1].since -= Duration::from_secs(2);
        assert_eq!(formed(&waiting, &limits).0, [0]);
    }

    #[test]
    fn search_for_tasks_ends_after_32() {
        let mut waiting: Vec<Candidate> = (0..34).map(|_| candidate("de", 1.0, 0)).collect();
        for at in [0, 32, 33] {
            waiting[at].key = Some("en".into());
        }
        assert_eq!(formed(&waiting, &Batching::up_to(8)).0, [0, 32]);
    }

    #[test]
    fn first_task_waits_for_a_full_batch_until_it_is_ripe() {
        let mut waiting = ["en"; 2].map(|key| candidate(key, 1.0, 0));
        let now = Instant::now();
        waiting[0].ripe_at = now + Duration::from_secs(1);
        let at =
            |limits: &Batching, now| form(waiting.iter(), limits, now).map(|formed| formed.members.len());
        assert_eq!(at(&Batching::up_to(3), now), None);
        assert_eq!(at(&Batching::up_to(2), now), Some(2));
        assert_eq!(at(&Batching::up_to(3), now + Duration::from_secs(1)), Some(2));
    }
}
