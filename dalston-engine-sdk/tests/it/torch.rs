//! libtorch under the runner.

use std::sync::atomic::Ordering;

use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::rig::{Closures, Rig};

/// 256 TiB of floats exceed the address space, so overcommitment does not matter.
const TOO_MUCH: [i64; 1] = [1 << 46];

#[tokio::test]
async fn exhausted_memory_fails_one_task_and_reloads_the_model() {
    let rig = Rig::new();
    let floats = (Kind::Float, Device::Cpu);
    let engine = Closures::with_model(move |model, _, cx| match cx.info().task_id.as_str() {
        "error" => Ok(json!(Tensor::f_zeros(TOO_MUCH, floats)?.size())),
        "panic" => Ok(json!(Tensor::zeros(TOO_MUCH, floats).size())),
        _ => Ok(json!({
            "used": model.get(),
            "sum": Tensor::f_ones([3], floats)?.sum(Kind::Float).double_value(&[]),
        })),
    });
    let loads = engine.loads();
    let builder = rig.runner(engine);
    let act = async {
        for (name, loads_after) in [("error", 1), ("after-error", 2), ("panic", 2), ("after-panic", 3)] {
            rig.submit(name).await;
            let outcome = rig.outcome(name).await.map(|_| ());
            if name.starts_with("after") {
                assert_eq!(outcome, Ok(()), "{name}");
            } else {
                let (code, error) = outcome.unwrap_err();
                assert_eq!(code, "out_of_memory", "{name}: {error}");
                assert!(
                    error.contains("memory") && !error.contains('\n'),
                    "{name}: {error}"
                );
            }
            assert_eq!(loads.load(Ordering::SeqCst), loads_after, "loads after {name}");
        }
    };
    rig.run(builder, act).await.1.unwrap();
    for name in ["after-error", "after-panic"] {
        assert_eq!(rig.response(name).await, json!({"used": 1, "sum": 3.0}), "{name}");
    }
    let failed: Vec<String> = rig
        .telemetry
        .spans()
        .iter()
        .filter(|span| span.name == "engine.process")
        .filter_map(|span| {
            let error = span
                .attributes
                .iter()
                .find(|attribute| attribute.key.as_str() == "error.type")?;
            Some(error.value.to_string())
        })
        .collect();
    assert_eq!(failed, ["out_of_memory", "out_of_memory"]);
}
