use super::panel::{Link, series, stacked, stat};
use super::query::{engine, of, rate, sum, work};
use super::{Board, row};

const ENGINES: Link = Link::Board("dalston-engine-performance");

pub(super) fn board() -> Board {
    const BY: &str = "engine_id, instance_type";
    let audio = engine("dalston_engine_audio_duration_seconds_sum", "");
    let completed = of("dalston_orchestrator_jobs_total", r#"status="completed""#);
    let instances = r#"count(up{job=~"engine-.*",instance=~"$instance"} == 1)"#;
    Board {
        uid: "dalston-cost",
        title: "Cost",
        description: "What the audio costs in machine time and energy. Prices are those of the variable below.",
        price: true,
        rows: vec![
            row("Volume", [
                series("Jobs completed/hour", "short", "Jobs that were completed, per hour.")
                    .target(format!("3600 * {}", sum("", &rate(&completed))), "jobs"),
                series("Audio minutes processed", "short", "Minutes of audio that engines process in a minute, by engine.")
                    .target(sum("engine_id", &rate(&audio)), "{{engine_id}}").link(ENGINES),
                stacked("Audio by instance type", "short", "Hours of audio that are processed in an hour, by hardware.")
                    .target(sum("instance_type", &rate(&audio)), "{{instance_type}}").link(ENGINES),
                series("Audio of jobs", "short", "Hours of audio of the jobs that end in an hour, by engine. Each job counts once, with any number of stages.")
                    .target(sum("engine_id", &rate(&of("dalston_orchestrator_audio_duration_seconds_sum", ""))), "{{engine_id}}"),
            ]),
            row("Efficiency", [
                series("Engine processing time per audio minute", "s", "Seconds of inference for a minute of audio: 60 divided by the speed. Lower is cheaper.")
                    .target(format!("60 * {} / ({} > 0)", work("engine_id"), sum("engine_id", &rate(&audio))), "{{engine_id}}").link(ENGINES),
                series("By instance type", "s", "Seconds of inference for a minute of audio, by hardware.")
                    .target(format!("60 * {} / ({} > 0)", work(BY), sum(BY, &rate(&audio))), "{{engine_id}} {{instance_type}}").link(ENGINES),
                series("Idle share", "percentunit", "The share of the last minute in which inference threads did nothing: paid for and not used.")
                    .target(format!("1 - avg by (engine_id) ({})", engine("dalston_engine_inference_busy_ratio", "")), "{{engine_id}}").link(ENGINES),
            ]),
            row("Machines", [
                stat("Engine processes", "short", "Processes of engines that run.")
                    .target(instances, "").link(ENGINES),
                series("Instance-seconds per second", "short", "Machine time of engines. With one engine on a machine, its integral times the price is the bill.")
                    .target(instances, "instances").link(ENGINES),
                series("Cost per audio hour", "currencyUSD", "Price of the running machines divided by the hours of audio that they process. The price of a machine for an hour is the variable price.")
                    .target(format!("$price * {instances} / ({} > 0)", sum("", &rate(&audio))), "cost"),
                series("Power", "watt", "Power draw of all GPUs.")
                    .target(sum("", &of("dalston_engine_gpu_power_watts", "")), "GPUs").link(ENGINES),
                series("Energy per audio hour", "watth", "Energy of the GPUs for an hour of audio.")
                    .target(format!("{} / ({} > 0)", sum("", &of("dalston_engine_gpu_power_watts", "")), sum("", &rate(&audio))), "energy"),
            ]),
        ],
    }
}
