mod classes;

use futures_util::FutureExt;

use super::*;

type Queue = Arc<RunQueue<&'static str>>;

/// A thread that is idle and holds these models.
fn thread(queue: &Queue, loaded: &[&str]) -> Arc<ThreadHandle> {
    let handle = ThreadHandle::new(0);
    queue.add(&handle);
    idle(queue, &handle, loaded);
    handle
}

fn idle(queue: &Queue, handle: &Arc<ThreadHandle>, loaded: &[&str]) {
    let loaded = loaded.iter().map(|model| ModelId::from(*model)).collect();
    queue.idle(handle, &loaded);
}

/// A queue whose batches have at most so many tasks.
fn batching(tasks: usize) -> Queue {
    Arc::new(RunQueue::new(Batching::up_to(tasks)))
}

fn enqueue(queue: &Queue, model: &str) -> QueueEntry<&'static str> {
    enqueue_until(queue, model, Instant::now())
}

/// A task that waits for a full batch until then.
fn enqueue_until(queue: &Queue, model: &str, ripe_at: Instant) -> QueueEntry<&'static str> {
    queue.enqueue(Candidate {
        class: Class::Batch,
        model: model.into(),
        key: Some("en".into()),
        audio: 1.0,
        since: Instant::now(),
        ripe_at,
    })
}

/// The thread of a task, if it has one.
fn assigned(entry: &mut QueueEntry<&'static str>) -> Option<AssignedThread<&'static str>> {
    entry.thread().now_or_never().flatten()
}

/// What a thread must do, without waiting.
fn next(queue: &Queue, handle: &Arc<ThreadHandle>) -> Option<Next<&'static str>> {
    queue.state().next(handle)
}

fn work(queue: &Queue, handle: &Arc<ThreadHandle>) -> &'static str {
    batch(queue, handle)[0]
}

fn batch(queue: &Queue, handle: &Arc<ThreadHandle>) -> Vec<&'static str> {
    match next(queue, handle) {
        Some(Next::Work(dispatched)) => dispatched.works,
        _ => panic!("no work"),
    }
}

#[test]
fn tasks_get_the_only_thread_in_order() {
    let queue = batching(1);
    let (mut first, mut second) = (enqueue(&queue, "b"), enqueue(&queue, "a"));
    let only = thread(&queue, &["a"]);
    assert!(assigned(&mut second).is_none());
    assigned(&mut first).unwrap().begin("first");
    assert_eq!(work(&queue, &only), "first");
    idle(&queue, &only, &["b"]);
    assigned(&mut second).unwrap().begin("second");
    assert_eq!(work(&queue, &only), "second");
}

#[test]
fn a_task_gets_the_idle_thread_that_holds_its_model() {
    let queue = batching(1);
    let (other, holder) = (thread(&queue, &[]), thread(&queue, &["a", "b"]));
    let first = assigned(&mut enqueue(&queue, "b")).unwrap();
    assert!(Arc::ptr_eq(&first.handle, &holder));
    // The holder is not idle any more.
    let second = assigned(&mut enqueue(&queue, "b")).unwrap();
    assert!(Arc::ptr_eq(&second.handle, &other));
}

#[test]
fn a_new_model_goes_to_the_thread_with_the_most_room() {
    let queue = batching(1);
    let (longest, roomy) = (thread(&queue, &["a", "b"]), thread(&queue, &["c"]));
    let also_roomy = thread(&queue, &["d"]);
    let assigned = ["x", "y", "z"].map(|model| assigned(&mut enqueue(&queue, model)).unwrap());
    for (assigned, expected) in assigned.iter().zip([roomy, also_roomy, longest]) {
        assert!(Arc::ptr_eq(&assigned.handle, &expected));
    }
}

#[test]
fn a_withdrawn_task_is_never_run() {
    let queue = batching(1);
    let (waiting, mut last) = (enqueue(&queue, "a"), enqueue(&queue, "a"));
    drop(waiting);
    let only = thread(&queue, &["a"]);
    assigned(&mut last).unwrap().begin("last");
    assert_eq!(work(&queue, &only), "last");
}

#[test]
fn a_refused_task_gives_its_thread_to_the_next_one() {
    let queue = batching(1);
    let only = thread(&queue, &["a"]);
    let (mut refused, unseen, mut last) = (enqueue(&queue, "a"), enqueue(&queue, "a"), enqueue(&queue, "a"));
    drop(assigned(&mut refused).unwrap());
    assert!(assigned(&mut last).is_none());
    // It has the thread now, without having looked.
    drop(unseen);
    assigned(&mut last).unwrap().begin("last");
    assert_eq!(work(&queue, &only), "last");
}

#[test]
fn a_thread_that_was_given_up_ends_when_it_comes_back() {
    let queue = batching(1);
    let stuck = thread(&queue, &[]);
    let begun = assigned(&mut enqueue(&queue, "a")).unwrap().begin("endless");
    assert_eq!(work(&queue, &stuck), "endless");
    assert_eq!(queue.give_up(&begun), GivenUp::Removed);
    idle(&queue, &stuck, &["a"]);
    assert!(assigned(&mut enqueue(&queue, "a")).is_none());
    assert!(matches!(next(&queue, &stuck), Some(Next::End)));
}

#[test]
fn a_thread_with_a_later_task_is_not_given_up() {
    let queue = batching(1);
    let slow = thread(&queue, &[]);
    let first = assigned(&mut enqueue(&queue, "a")).unwrap().begin("first");
    assert_eq!(work(&queue, &slow), "first");
    idle(&queue, &slow, &["a"]);
    assert_eq!(queue.give_up(&first), GivenUp::Returned);
    let _second = assigned(&mut enqueue(&queue, "a")).unwrap().begin("second");
    assert_eq!(work(&queue, &slow), "second");
    assert_eq!(queue.give_up(&first), GivenUp::Returned);
}

#[test]
fn a_sweep_reaches_only_idle_threads() {
    let queue = batching(1);
    let (swept, busy) = (thread(&queue, &["a"]), thread(&queue, &["b"]));
    let task = assigned(&mut enqueue(&queue, "b")).unwrap();
    let now = Instant::now();
    queue.sweep(now);
    assert!(matches!(next(&queue, &swept), Some(Next::Sweep(at)) if at == now));
    task.begin("work");
    assert_eq!(work(&queue, &busy), "work");
}

#[test]
fn a_closed_queue_ends_its_threads_and_refuses_tasks() {
    let queue = batching(1);
    let (rested, busy) = (thread(&queue, &[]), thread(&queue, &["a"]));
    let begun = assigned(&mut enqueue(&queue, "a")).unwrap();
    queue.close();
    assert!(matches!(next(&queue, &rested), Some(Next::End)));
    let refused = enqueue(&queue, "a").thread().now_or_never();
    assert!(matches!(refused, Some(None)));
    begun.begin("already admitted");
    assert_eq!(work(&queue, &busy), "already admitted");
    idle(&queue, &busy, &["a"]);
    assert!(matches!(next(&queue, &busy), Some(Next::End)));
}

#[test]
fn a_task_wakes_a_thread_that_sleeps() {
    let queue = batching(1);
    let handle = thread(&queue, &[]);
    let sleeper = {
        let (queue, handle) = (Arc::clone(&queue), Arc::clone(&handle));
        std::thread::spawn(move || queue.next(&handle))
    };
    assigned(&mut enqueue(&queue, "a")).unwrap().begin("work");
    let Next::Work(dispatched) = sleeper.join().unwrap() else {
        panic!("no work");
    };
    assert_eq!(dispatched.works, ["work"]);
}

#[test]
fn waiting_tasks_get_a_thread_together() {
    let queue = batching(2);
    let only = thread(&queue, &["a"]);
    let mut first = enqueue(&queue, "a");
    let mut waiting = ["a"; 3].map(|model| enqueue(&queue, model));
    assigned(&mut first).unwrap().begin("first");
    assert_eq!(batch(&queue, &only), ["first"]);
    idle(&queue, &only, &["a"]);
    let [second, third, fourth] = &mut waiting;
    let (second, third) = (assigned(second).unwrap(), assigned(third).unwrap());
    assert!(assigned(fourth).is_none());
    third.begin("third");
    assert!(next(&queue, &only).is_none());
    second.begin("second");
    assert_eq!(batch(&queue, &only), ["second", "third"]);
}

#[test]
fn batch_begins_without_a_refused_task() {
    let queue = batching(2);
    let (mut first, mut second) = (enqueue(&queue, "a"), enqueue(&queue, "a"));
    let only = thread(&queue, &["a"]);
    assigned(&mut first).unwrap().begin("first");
    drop(assigned(&mut second).unwrap());
    assert_eq!(batch(&queue, &only), ["first"]);
}

#[test]
fn thread_of_a_batch_is_given_up_with_its_last_task() {
    let queue = batching(3);
    let mut entries = ["a"; 3].map(|model| enqueue(&queue, model));
    let stuck = thread(&queue, &["a"]);
    let begun = entries
        .each_mut()
        .map(|entry| assigned(entry).unwrap().begin("work"));
    assert_eq!(batch(&queue, &stuck).len(), 3);
    assert_eq!(queue.give_up(&begun[0]), GivenUp::HasOthers);
    queue.over(&begun[1]);
    assert_eq!(queue.give_up(&begun[0]), GivenUp::HasOthers);
    assert_eq!(queue.give_up(&begun[2]), GivenUp::Removed);
    assert_eq!(queue.give_up(&begun[0]), GivenUp::Returned);
}

#[tokio::test(start_paused = true)]
async fn first_task_waits_for_a_full_batch() {
    let queue = batching(3);
    let only = thread(&queue, &["a"]);
    let ripe_at = Instant::now() + Duration::from_secs(5);
    let mut entries = ["a"; 2].map(|model| enqueue_until(&queue, model, ripe_at));
    assert!(assigned(&mut entries[0]).is_none());
    let [first, second] = &mut entries;
    let (first, second) = tokio::join!(first.thread(), second.thread());
    assert_eq!(Instant::now(), ripe_at);
    second.unwrap().begin("second");
    let first = first.unwrap();
    assert_eq!(first.waited(), Duration::from_secs(5));
    first.begin("first");
    let Some(Next::Work(dispatched)) = next(&queue, &only) else {
        panic!("no work");
    };
    assert_eq!(dispatched.works, ["first", "second"]);
    assert_eq!(
        (dispatched.reason, dispatched.waited),
        (BatchDispatch::Waited, Duration::from_secs(5))
    );
}
