//! Calls about several tasks at the same time.

use dalston_engine_sdk::broker::{Broker, EventContext, Lookup, Outcome, Ownership};
use serde_json::Value;
use testbed::TestRedis;

use super::{RELEASED, STREAM, TASK, artifact, events, patient, pending, take, value};

#[tokio::test]
async fn failing_call_does_not_affect_concurrent_calls() {
    let server = TestRedis::start().await;
    let () = server
        .send(&["SET", "dalston:job:job-7:artifacts", "not a hash"])
        .await;
    let broker = patient(&server);
    let claims = take(&server, &broker, 20).await;
    let finishes = claims.into_iter().map(|claim| {
        let broker = broker.clone();
        async move {
            let outcome = Outcome::Completed {
                artifacts: vec![artifact()],
            };
            broker.finish(&claim, &outcome, &EventContext::default()).await
        }
    });
    let finished = futures_util::future::join_all(finishes).await;
    for (number, finished) in finished.into_iter().enumerate() {
        match finished {
            Ok(owner) => assert!(owner == Ownership::Held && number != 7),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    number == 7 && text.contains("finishing task task-7"),
                    "{number} {text}"
                );
            }
        }
    }
    assert_eq!(
        (events(&server).await.len(), pending(&server).await.len()),
        (19, 1)
    );
}

#[tokio::test]
async fn only_held_tasks_are_reported_and_acknowledged() {
    let server = TestRedis::start().await;
    let broker = patient(&server);
    let claims = take(&server, &broker, 6).await;
    let ids: Vec<&str> = claims.iter().map(|claim| &*claim.message_id).collect();
    let taken_over = ["XCLAIM", STREAM, "engines", "b", "0", ids[1], "JUSTID"];
    let () = server.send(&taken_over).await;
    let delivered_again = [
        "XCLAIM",
        STREAM,
        "engines",
        "a",
        "0",
        ids[2],
        "RETRYCOUNT",
        "2",
        "JUSTID",
    ];
    let () = server.send(&delivered_again).await;
    let () = server.send(&["XACK", STREAM, "engines", ids[3]]).await;

    let ends = claims.iter().map(|claim| async {
        let outcome = Outcome::Completed {
            artifacts: Vec::new(),
        };
        broker
            .finish(claim, &outcome, &EventContext::default())
            .await
            .unwrap()
    });
    let ends = futures_util::future::join_all(ends).await;

    use Ownership::{Held, Lost};
    assert_eq!(ends, [Held, Lost, Lost, Lost, Held, Held]);
    let reported: Vec<Value> = events(&server)
        .await
        .iter()
        .map(|event| value(&event["payload"])["task_id"].clone())
        .collect();
    assert_eq!(reported, ["task-0", "task-4", "task-5"]);
    let left = [
        (ids[1].to_owned(), "b".to_owned(), 1),
        (ids[2].to_owned(), "a".to_owned(), 2),
    ];
    assert_eq!(pending(&server).await, left);
}

#[tokio::test]
async fn tasks_finish_in_any_order() {
    let server = TestRedis::start().await;
    let broker = patient(&server);
    let claims = take(&server, &broker, 40).await;
    let outcome = Outcome::Completed {
        artifacts: Vec::new(),
    };
    let context = EventContext::default();

    let ends = [&claims[39], &claims[0], &claims[20]].map(|claim| broker.finish(claim, &outcome, &context));
    for end in futures_util::future::join_all(ends).await {
        assert_eq!(end.unwrap(), Ownership::Held);
    }

    assert_eq!(
        (events(&server).await.len(), pending(&server).await.len()),
        (3, 37)
    );
}

#[tokio::test]
async fn ended_task_can_not_be_ended_or_renewed_again() {
    let server = TestRedis::start().await;
    let broker = patient(&server);
    let claims = take(&server, &broker, 2).await;
    let (outcome, context) = (Outcome::Skipped, EventContext::default());
    // Until their first use the server does not know the scripts, and calls can change places.
    let warm_up = take(&server, &broker, 1).await;
    let _ = broker.renew(&warm_up[0]).await.unwrap();
    let _ = broker.finish(&warm_up[0], &outcome, &context).await.unwrap();
    assert_eq!(broker.release(&warm_up[0]).await.unwrap(), Ownership::Lost);

    let (finished, renewed, returned, too_late) = tokio::join!(
        broker.finish(&claims[0], &outcome, &context),
        broker.renew(&claims[0]),
        broker.release(&claims[1]),
        broker.renew(&claims[1]),
    );

    assert_eq!(
        (finished.unwrap(), returned.unwrap()),
        (Ownership::Held, Ownership::Held)
    );
    // The task is not in the queue any more, because this process finished it.
    assert_eq!(renewed.unwrap(), Ownership::Held);
    assert_eq!(too_late.unwrap(), Ownership::Lost);
    let left = [(claims[1].message_id.clone(), RELEASED.to_owned(), 1)];
    assert_eq!(pending(&server).await, left);
}

#[tokio::test]
async fn concurrent_calls_get_their_own_replies() {
    let server = TestRedis::start().await;
    let broker = patient(&server);
    let claims = take(&server, &broker, 5).await;
    for job in ["job-1", "job-3"] {
        let () = server
            .send(&["SET", &format!("dalston:job:cancelled:{job}"), "1"])
            .await;
    }
    let outcome = Outcome::Completed {
        artifacts: vec![artifact()],
    };
    let context = EventContext::default();

    let (first, cancelled, second, finished, not_cancelled, third) = tokio::join!(
        broker.lookup(&claims[0]),
        broker.is_cancelled(&claims[3]),
        broker.lookup(&claims[1]),
        broker.finish(&claims[4], &outcome, &context),
        broker.is_cancelled(&claims[0]),
        broker.lookup(&claims[2]),
    );

    let stage = |lookup: Lookup| match lookup {
        Lookup::Task(metadata) => metadata.stage,
        other => format!("{other:?}"),
    };
    let stages = [first.unwrap(), second.unwrap(), third.unwrap()].map(stage);
    assert_eq!(
        stages,
        [
            "transcribe_ch0",
            "Cancelled { is_running: false }",
            "transcribe_ch2"
        ]
    );
    assert_eq!((cancelled.unwrap(), not_cancelled.unwrap()), (true, false));
    assert_eq!(finished.unwrap(), Ownership::Held);
    let artifacts: Vec<String> = server.send(&["HKEYS", "dalston:job:job-4:artifacts"]).await;
    assert_eq!(artifacts, [format!("{TASK}:words")]);
}
