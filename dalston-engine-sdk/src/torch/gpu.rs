//! What the NVIDIA driver says about the machine's GPUs.
//!
//! Asked of `nvidia-smi`, which comes with the driver, as the platform's other engines do: it answers also when libtorch
//! cannot use the GPU, which is when one wants to know, and it counts the memory of all processes.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A broken driver makes `nvidia-smi` hang rather than fail.
const PATIENCE: Duration = Duration::from_secs(5);
const FIELDS: &str = "index,name,memory.used,memory.total,utilization.gpu,driver_version,compute_cap";

/// One GPU, as the NVIDIA driver sees it at this moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gpu {
    /// The driver's number for it. CUDA counts the same way unless `CUDA_VISIBLE_DEVICES` or `CUDA_DEVICE_ORDER` says
    /// otherwise.
    pub index: usize,
    /// For example `NVIDIA L4`.
    pub name: String,
    /// Memory in use by all processes, in bytes.
    pub memory_used: u64,
    /// Memory of the device, in bytes.
    pub memory_total: u64,
    /// Share of the last sample period in which at least one kernel ran, from 0 to 1; `None` where the driver does not
    /// tell, as on a partitioned GPU.
    pub utilization: Option<f64>,
    /// Version of the driver.
    pub driver_version: String,
    /// CUDA compute capability, for example `8.9`.
    pub compute_capability: String,
}

/// Asks the driver for its GPUs, waiting at most five seconds.
///
/// # Errors
///
/// Says in one line why it cannot tell, for example that there is no `nvidia-smi`.
pub fn gpus() -> Result<Vec<Gpu>, GpuError> {
    let query = format!("--query-gpu={FIELDS}");
    let output = run("nvidia-smi", &[&query, "--format=csv,noheader,nounits"], PATIENCE)?;
    parse(&output)
}

/// Why the driver's view of the GPUs cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The program could not be started: usually no NVIDIA driver is installed.
    #[error("nvidia-smi cannot be started: {0}")]
    Start(#[source] std::io::Error),
    /// It did not answer.
    #[error("nvidia-smi gave no answer within {0:?}; the driver may be stuck")]
    Timeout(Duration),
    /// It answered with an error.
    #[error("nvidia-smi failed: {0}")]
    Failed(String),
    /// It answered something else than it was asked for.
    #[error("nvidia-smi answered \"{0}\": expected one line for each GPU with {FIELDS}")]
    Answer(String),
}

fn run(program: &str, arguments: &[&str], patience: Duration) -> Result<String, GpuError> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(GpuError::Start)?;
    let Some(mut stdout) = child.stdout.take() else {
        return Err(GpuError::Failed("its output is not readable".to_owned()));
    };
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.read_to_string(&mut text);
        let _ = sender.send(read.map(|_| text));
    });
    let answer = receiver.recv_timeout(patience);
    if answer.is_err() {
        // Past its time. Killing it ends the reading thread, too.
        let _ = child.kill();
    }
    let status = child.wait();
    match (answer, status) {
        (Err(_), _) => Err(GpuError::Timeout(patience)),
        (Ok(Err(error)), _) | (_, Err(error)) => Err(GpuError::Failed(error.to_string())),
        // It writes its errors to standard output.
        (Ok(Ok(text)), Ok(status)) if !status.success() => Err(GpuError::Failed(
            text.lines()
                .next()
                .map_or_else(|| status.to_string(), str::to_owned),
        )),
        (Ok(Ok(text)), Ok(_)) => Ok(text),
    }
}

fn parse(text: &str) -> Result<Vec<Gpu>, GpuError> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| parse_line(line).ok_or_else(|| GpuError::Answer(line.to_owned())))
        .collect()
}

fn parse_line(line: &str) -> Option<Gpu> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [index, name, used, total, utilization, driver, capability] = fields.as_slice() else {
        return None;
    };
    let mebibytes = |text: &str| text.parse::<u64>().ok()?.checked_mul(1 << 20);
    Some(Gpu {
        index: index.parse().ok()?,
        name: (*name).to_owned(),
        memory_used: mebibytes(used)?,
        memory_total: mebibytes(total)?,
        utilization: utilization.parse::<f64>().ok().map(|percent| percent / 100.0),
        driver_version: (*driver).to_owned(),
        compute_capability: (*capability).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn each_line_is_a_gpu() {
        let answer =
            "0, NVIDIA L4, 1024, 23034, 37, 550.54.15, 8.9\n1, NVIDIA L4, 3, 23034, [N/A], 550.54.15, 8.9\n";

        let gpus = parse(answer).unwrap();

        let first = Gpu {
            index: 0,
            name: "NVIDIA L4".to_owned(),
            memory_used: 1 << 30,
            memory_total: 23034 << 20,
            utilization: Some(0.37),
            driver_version: "550.54.15".to_owned(),
            compute_capability: "8.9".to_owned(),
        };
        let second = Gpu {
            index: 1,
            memory_used: 3 << 20,
            utilization: None,
            ..first.clone()
        };
        assert_eq!(gpus, [first, second]);
    }

    #[test]
    fn an_answer_in_another_form_is_shown() {
        let error = parse("No devices were found\n").unwrap_err();
        assert!(error.to_string().contains("No devices were found"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_given_up() {
        let started = Instant::now();

        let error = run("sleep", &["60"], Duration::from_millis(50)).unwrap_err();

        assert!(matches!(error, GpuError::Timeout(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_program_that_fails_or_is_missing_is_reported() {
        let failed = run("sh", &["-c", "echo the driver is gone; exit 9"], PATIENCE).unwrap_err();
        assert_eq!(failed.to_string(), "nvidia-smi failed: the driver is gone");

        let missing = run("/nonexistent/nvidia-smi", &[], PATIENCE).unwrap_err();
        assert!(matches!(missing, GpuError::Start(_)), "{missing}");
    }
}
