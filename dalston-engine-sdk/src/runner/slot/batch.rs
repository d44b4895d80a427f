//! Several tasks at once on an inference thread.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant as ThreadInstant};

use dalston_telemetry::services::engine::{BatchSplit, Device};
use tokio::time::Instant;

use super::{Answer, InferenceThread, ModelUse, Work, catch, conclude, send};
use crate::batch::{Batch, BatchItem};
use crate::engine::Engine;
use crate::error::{TaskError, TaskErrorKind};
use crate::model_id::ModelId;
use crate::runner::run_queue::Dispatched;
use crate::scope::Scope;
use crate::spans::{self, OpenSpan};
use crate::stage::StageOutput;

/// After so many batches without exhausted memory, one more task is tried.
const BATCHES_PER_RAISE: u32 = 32;

/// A task of a batch that is being processed.
struct Member {
    work: Work,
    model: ModelUse,
    /// `engine.process`
    span: OpenSpan,
}

/// A batch that failed as a whole, with the tasks that were not finished.
struct Failed {
    works: Vec<Work>,
    reason: BatchSplit,
}

impl<E: Engine> InferenceThread<E> {
    /// Processes one task or a batch.
    pub(super) fn dispatch(&mut self, dispatched: Dispatched<Work>, idle: impl FnOnce(&Arc<[ModelId]>)) {
        let Dispatched {
            mut works,
            reason,
            waited,
        } = dispatched;
        if self.takes_batches {
            self.metrics.batch(works.len(), reason, waited);
        }
        match works.pop() {
            Some(only) if works.is_empty() => self.process(only, idle),
            last => {
                works.extend(last);
                self.process_all(works, waited);
                idle(&self.loaded);
            }
        }
    }

    /// Processes the tasks in as few calls as memory allows, and those of a failed call again.
    fn process_all(&mut self, works: Vec<Work>, waited: Duration) {
        let mut pieces = VecDeque::from([works]);
        while let Some(mut piece) = pieces.pop_front() {
            let Some(id) = piece.first().map(|first| first.cx.info().model.clone()) else {
                continue;
            };
            let most = self.sizes.limit(&id);
            if piece.len() > most {
                pieces.push_front(piece.split_off(most));
            }
            let tasks = piece.len();
            let Some(Failed { works, reason }) = self.process_piece(piece, waited) else {
                self.sizes.worked(&id, tasks);
                continue;
            };
            self.metrics.batch_split(reason);
            tracing::warn!(tasks = works.len(), reason = reason.as_str(), "batch_split");
            if reason == BatchSplit::OutOfMemory {
                // The limit is lower now.
                pieces.push_front(works);
            } else {
                for work in works.into_iter().rev() {
                    pieces.push_front(vec![work]);
                }
            }
        }
    }

    /// Processes tasks with the same model in one call.
    fn process_piece(&mut self, works: Vec<Work>, waited: Duration) -> Option<Failed> {
        let now = Instant::now();
        let mut ready = Vec::with_capacity(works.len());
        for work in works {
            // The first one loads the model, and the others find it in memory.
            match self.acquire(&work, now) {
                Ok(model) => ready.push((work, model)),
                Err(error) => self.process_with(work, Err(error), now, |_| ()),
            }
        }
        if ready.len() > 1 {
            let failed = self.call(ready, now, waited);
            self.show_models();
            return failed;
        }
        if let Some((only, model)) = ready.pop() {
            self.process_with(only, Ok(model), now, |_| ());
        }
        None
    }

    fn call(&mut self, ready: Vec<(Work, ModelUse)>, now: Instant, waited: Duration) -> Option<Failed> {
        let (tasks, device) = (ready.len(), self.load_context.device());
        let (first, _) = ready.first()?;
        let (id, gpu) = (first.cx.info().model.clone(), first.gpu.clone());
        let (batch_span, batch_scope) = first.scope.run(|| {
            let span = spans::batch(tasks, waited, &first.scope.opener);
            let scope = Scope::without_fields((*span).clone());
            (span, scope)
        });
        let members = ready.into_iter().enumerate().map(|(index, (work, model))| {
            let span = work.scope.run(|| spans::process(&work.scope.opener));
            spans::in_batch(&span, &batch_span, index, tasks, waited);
            Some(Member { work, model, span })
        });
        let members: Vec<Option<Member>> = members.collect();
        let peak = match batch_span.is_disabled() {
            true => None,
            false => gpu.watch_peak(),
        };
        let Some(model) = self.models.hit(&id, now) else {
            let works = members.into_iter().flatten().map(|member| member.work);
            return Some(Failed {
                works: works.collect(),
                reason: BatchSplit::Error,
            });
        };
        let begun = ThreadInstant::now();
        let open = OpenMembers::new(members);
        let mut batch = open.batch(begun, device);
        let result = batch_scope.run(|| catch(|| self.engine.process_batch(&mut model.model, &mut batch)));
        drop(batch);
        let elapsed = begun.elapsed();
        self.models.hit(&id, Instant::now());
        if device == Device::Cuda
            && let Some(bytes) = peak.and_then(|peak| peak.bytes())
        {
            spans::gpu_memory_peak(&batch_span, bytes);
        }
        if let Err(error) = &result {
            spans::record_failure(&batch_span, error);
            if error.kind() == TaskErrorKind::Panic
                && let Some(model) = self.models.remove(&id)
            {
                super::drop_quietly(model);
            }
        }
        drop(batch_span);
        let (left, share, is_out_of_memory) = open.into_left(elapsed);
        let reason = match &result {
            _ if is_out_of_memory => BatchSplit::OutOfMemory,
            Err(error) if error.kind() == TaskErrorKind::OutOfMemory => BatchSplit::OutOfMemory,
            Err(error) if error.kind() == TaskErrorKind::Panic => BatchSplit::Panic,
            Err(_) => BatchSplit::Error,
            Ok(()) => {
                for member in left {
                    member.end::<E::Output>(Err(unfinished()), elapsed, share, device);
                }
                return None;
            }
        };
        if reason == BatchSplit::OutOfMemory {
            self.sizes.failed(&id, tasks, &self.loaded);
        }
        if left.is_empty() {
            return None;
        }
        let error = result.err().unwrap_or_else(out_of_memory);
        let works = left.into_iter().map(|Member { work, span, .. }| {
            spans::record_failure(&span, &error);
            work
        });
        Some(Failed {
            works: works.collect(),
            reason,
        })
    }
}

impl Member {
    /// Answers the task.
    fn end<O: StageOutput>(
        self,
        output: Result<O, TaskError>,
        elapsed: Duration,
        share: Duration,
        device: Device,
    ) {
        let Self { work, model, span } = self;
        let Work {
            request,
            cx,
            scope,
            answer,
            ..
        } = work;
        let output = output.map_err(TaskError::classified);
        let result = scope.run(|| conclude(output, span, &request, &cx, elapsed));
        drop((request, cx, scope));
        send(
            answer,
            Answer {
                result,
                model,
                device,
                process: Some(elapsed),
                share,
            },
        );
    }
}

/// The tasks of a batch that are not finished. The engine may finish them on threads of its own.
struct OpenMembers {
    members: Mutex<Shared>,
    /// Whether the engine said so of a task. That task is processed again, in a smaller batch.
    is_out_of_memory: AtomicBool,
}

struct Shared {
    members: Vec<Option<Member>>,
    /// How much of the time until `until` belongs to each task that is not finished.
    share: Duration,
    until: Duration,
}

impl Shared {
    /// Divides the time since the last call among the tasks that are not finished.
    fn divide(&mut self, elapsed: Duration) {
        let open = self.members.iter().flatten().count();
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        let passed = elapsed.saturating_sub(self.until);
        self.share += passed.checked_div(open).unwrap_or_default();
        self.until = self.until.max(elapsed);
    }
}

impl OpenMembers {
    fn new(members: Vec<Option<Member>>) -> Self {
        Self {
            members: Mutex::new(Shared {
                members,
                share: Duration::ZERO,
                until: Duration::ZERO,
            }),
            is_out_of_memory: AtomicBool::new(false),
        }
    }

    fn batch<O: StageOutput>(&self, begun: ThreadInstant, device: Device) -> Batch<'_, O> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let items = members.members.iter().enumerate().filter_map(|(index, member)| {
            let Member { work, span, .. } = member.as_ref()?;
            let scope = work.scope.run(|| Scope::with_span((**span).clone()));
            let finish = move |output| self.finish::<O>(index, output, begun.elapsed(), device);
            Some(BatchItem::new(
                Arc::clone(&work.request),
                work.cx.clone(),
                scope,
                finish,
            ))
        });
        Batch::new(items.collect())
    }

    fn finish<O: StageOutput>(
        &self,
        index: usize,
        output: Result<O, TaskError>,
        elapsed: Duration,
        device: Device,
    ) {
        let output = output.map_err(TaskError::classified);
        if let Err(error) = &output
            && error.kind() == TaskErrorKind::OutOfMemory
        {
            self.is_out_of_memory.store(true, Ordering::Relaxed);
            return;
        }
        let mut shared = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        shared.divide(elapsed);
        let member = shared.members.get_mut(index).and_then(Option::take);
        let share = shared.share;
        drop(shared);
        if let Some(member) = member {
            member.end(output, elapsed, share, device);
        }
    }

    /// The tasks that are not finished, the part of each of them in the time, and whether memory
    /// was exhausted.
    fn into_left(self, elapsed: Duration) -> (Vec<Member>, Duration, bool) {
        let mut shared = self.members.into_inner().unwrap_or_else(PoisonError::into_inner);
        shared.divide(elapsed);
        (
            shared.members.into_iter().flatten().collect(),
            shared.share,
            self.is_out_of_memory.into_inner(),
        )
    }
}

fn unfinished() -> TaskError {
    TaskError::permanent(
        "batch_unfinished",
        "the engine's process_batch returned without a result of this task",
    )
}

fn out_of_memory() -> TaskError {
    TaskError::new(
        TaskErrorKind::OutOfMemory,
        "out_of_memory",
        "the memory did not suffice for the whole batch",
    )
}

/// The sizes of batches for which memory sufficed, by model. Models that are not listed have no
/// limit.
#[derive(Debug, Default)]
pub(super) struct BatchSizes(HashMap<ModelId, Safe>);

#[derive(Debug)]
struct Safe {
    tasks: usize,
    /// Batches of this size since it was changed.
    worked: u32,
}

impl BatchSizes {
    fn limit(&self, model: &ModelId) -> usize {
        self.0.get(model).map_or(usize::MAX, |safe| safe.tasks)
    }

    /// Memory did not suffice for so many tasks.
    fn failed(&mut self, model: &ModelId, tasks: usize, loaded: &[ModelId]) {
        self.0.retain(|known, _| loaded.contains(known));
        let tasks = (tasks / 2).max(1);
        self.0.insert(model.clone(), Safe { tasks, worked: 0 });
    }

    fn worked(&mut self, model: &ModelId, tasks: usize) {
        if let Some(safe) = self.0.get_mut(model)
            && tasks >= safe.tasks
        {
            safe.worked += 1;
            if safe.worked >= BATCHES_PER_RAISE {
                safe.tasks += 1;
                safe.worked = 0;
            }
        }
    }
}
