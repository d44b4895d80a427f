//! Compares the rules in tensors with the same rules on the host, as in `goldens/reference.py`.

use faster_whisper::{RuleConfig, Rules, Vocabulary};
use tch::{Device, Tensor};

use crate::support::nano;

#[test]
fn timestamp_rules_match_the_reference() {
    let whisper = nano();
    let vocabulary = whisper.vocabulary();
    let config = RuleConfig {
        suppress: vec![1, 2, 220, 513],
        suppress_first: vec![220, 512],
        timestamps: true,
        max_initial_timestamp: Some(50),
        ..RuleConfig::default()
    };
    let rules = Rules::new(vocabulary, &config, Device::Cpu).unwrap();
    let mut random = Random(7);
    for sampled in histories(vocabulary, &mut random) {
        let logits = row(vocabulary, &mut random);
        let tensor = Tensor::from_slice(&logits).unsqueeze(0);
        let found = Vec::<f32>::try_from(rules.apply(&tensor, &sampled).unwrap().squeeze_dim(0)).unwrap();
        let expected = reference(&logits, vocabulary, &config, &sampled);
        let differs: Vec<usize> = (0..found.len()).filter(|&i| found[i] != expected[i]).collect();
        assert!(differs.is_empty(), "after {sampled:?}: tokens {differs:?}");
    }
}

#[test]
fn without_timestamps_only_suppression_applies() {
    let whisper = nano();
    let vocabulary = whisper.vocabulary();
    let config = RuleConfig {
        suppress: vec![1],
        suppress_first: vec![2],
        ..RuleConfig::default()
    };
    let rules = Rules::new(vocabulary, &config, Device::Cpu).unwrap();
    let logits = Tensor::zeros([1, vocabulary.size()], (tch::Kind::Float, Device::Cpu));
    let forbidden = |sampled: &[i64]| {
        let row = rules.apply(&logits, sampled).unwrap();
        Vec::<i64>::try_from(row.squeeze_dim(0).isinf().nonzero().squeeze_dim(-1)).unwrap()
    };
    assert_eq!(forbidden(&[]), [1, 2]);
    assert_eq!(forbidden(&[5]), [1]);
    assert_eq!(forbidden(&[vocabulary.first_timestamp()]), [1]);
}

#[test]
fn ids_outside_the_vocabulary_are_ignored() {
    let whisper = nano();
    let config = RuleConfig {
        suppress: vec![-1, 1 << 40],
        ..RuleConfig::default()
    };
    let rules = Rules::new(whisper.vocabulary(), &config, Device::Cpu).unwrap();
    let logits = Tensor::zeros([1, whisper.vocabulary().size()], (tch::Kind::Float, Device::Cpu));
    assert_eq!(rules.apply(&logits, &[]).unwrap(), logits);
}

/// All combinations of the kinds of the last three tokens, and random longer sequences.
fn histories(vocabulary: &Vocabulary, random: &mut Random) -> Vec<Vec<i64>> {
    let stamp = |steps: i64| vocabulary.first_timestamp() + steps;
    let mut all = vec![
        vec![],
        vec![stamp(0)],
        vec![stamp(50)],
        vec![40],
        vec![stamp(1500)],
    ];
    for shape in 0..8_i64 {
        let mut time = 3;
        let history = (0..3)
            .map(|at| {
                time += 4;
                if shape >> at & 1 == 1 {
                    stamp(time)
                } else {
                    40 + at
                }
            })
            .collect();
        all.push(history);
    }
    all.push(vec![stamp(3), 40, stamp(9), stamp(9)]);
    all.push(vec![stamp(3), 40, stamp(9), stamp(9), 41]);
    all.push(vec![stamp(3), 40, stamp(1500)]);
    for _ in 0..60 {
        let mut time = 0;
        let mut history = Vec::new();
        for _ in 0..random.below(12) {
            if random.below(2) == 0 {
                time += random.below(200);
                history.push(stamp(time.min(1500)));
            } else {
                history.push(random.below(500));
            }
        }
        all.push(history);
    }
    all
}

/// Logits in which either the text or the timestamps are more likely.
fn row(vocabulary: &Vocabulary, random: &mut Random) -> Vec<f32> {
    let lead = random.below(9) as f32 - 4.0;
    (0..vocabulary.size())
        .map(|id| {
            let noise = random.below(4000) as f32 / 1000.0;
            if id >= vocabulary.first_timestamp() {
                noise + lead - 6.0
            } else {
                noise
            }
        })
        .collect()
}

/// `Reference.filter` of goldens/reference.py.
fn reference(logits: &[f32], vocabulary: &Vocabulary, config: &RuleConfig, sampled: &[i64]) -> Vec<f32> {
    let mut row = logits.to_vec();
    let first = vocabulary.first_timestamp() as usize;
    let forbid = |row: &mut Vec<f32>, from: usize, to: usize| {
        let to = to.min(row.len());
        row[from.min(to)..to].fill(f32::NEG_INFINITY);
    };
    for &id in &config.suppress {
        row[id as usize] = f32::NEG_INFINITY;
    }
    if sampled.is_empty() {
        for &id in &config.suppress_first {
            row[id as usize] = f32::NEG_INFINITY;
        }
    }
    row[vocabulary.no_timestamps() as usize] = f32::NEG_INFINITY;
    let is_stamp = |id: i64| id as usize >= first;
    let last = sampled.last().is_some_and(|&id| is_stamp(id));
    let before = sampled.len() < 2 || is_stamp(sampled[sampled.len() - 2]);
    let all = row.len();
    if last && before {
        forbid(&mut row, first, all);
    } else if last {
        forbid(&mut row, 0, vocabulary.end_of_text() as usize);
    }
    if let Some(&stamp) = sampled.iter().rfind(|&&id| is_stamp(id)) {
        let limit = if last && !before { stamp } else { stamp + 1 };
        forbid(&mut row, first, limit as usize);
    }
    if sampled.is_empty() {
        forbid(&mut row, 0, first);
        if let Some(max) = config.max_initial_timestamp {
            forbid(&mut row, first + max as usize + 1, all);
        }
    }
    let stamps: f64 = row[first..].iter().map(|&x| f64::from(x).exp()).sum();
    let text = row[..first]
        .iter()
        .map(|&x| f64::from(x).exp())
        .fold(0.0, f64::max);
    if stamps > text {
        forbid(&mut row, 0, first);
    }
    row
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> i64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % limit) as i64
    }
}
