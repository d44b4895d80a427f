//! The order of tasks of different classes.

use super::*;

fn live(queue: &Queue, class: Class) -> QueueEntry<&'static str> {
    let now = Instant::now();
    queue.enqueue(Candidate {
        class,
        model: "a".into(),
        key: None,
        audio: 1.0,
        since: now,
        ripe_at: now,
    })
}

#[test]
fn finals_precede_partials_and_both_precede_batch_tasks() {
    let queue = batching(1);
    let classes = [
        Class::Batch,
        Class::Partial,
        Class::Final,
        Class::Partial,
        Class::Final,
    ];
    let mut entries: Vec<_> = classes.iter().map(|class| live(&queue, *class)).collect();
    let only = thread(&queue, &["a"]);
    for expected in [2, 4, 1, 3, 0] {
        let given = entries.iter_mut().position(|entry| match assigned(entry) {
            Some(thread) => {
                thread.begin("work");
                true
            }
            None => false,
        });
        assert_eq!(given, Some(expected));
        work(&queue, &only);
        idle(&queue, &only, &["a"]);
    }
}

#[test]
fn batch_task_gets_a_turn_while_sessions_keep_coming() {
    let queue = batching(1);
    let only = thread(&queue, &["a"]);
    let mut first = live(&queue, Class::Final);
    assigned(&mut first).unwrap().begin("live");
    let mut batch = enqueue(&queue, "a");
    let mut turns = 0;
    let batch = loop {
        let mut next = live(&queue, Class::Final);
        work(&queue, &only);
        idle(&queue, &only, &["a"]);
        match assigned(&mut next) {
            Some(thread) => thread.begin("live"),
            None => break assigned(&mut batch).expect("the thread is idle"),
        };
        turns += 1;
        assert!(turns <= LIVE_IN_A_ROW, "the batch task starves");
    };
    assert_eq!(turns, LIVE_IN_A_ROW);
    batch.begin("batch");
    assert_eq!(work(&queue, &only), "batch");
}
