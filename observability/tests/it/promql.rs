//! Checks expressions: every series exists, every label exists where it is used, `rate` reads
//! counters only, and both sides of an operator have the same labels.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::label::{Labels, MatchOp};
use promql_parser::parser::{self, AggregateExpr, BinaryExpr, Call, Expr, LabelModifier, VectorSelector};

use crate::manifest::{Kind, Manifest};

/// The labels of the samples of an expression.
type Found = BTreeSet<String>;

#[derive(Debug)]
pub(crate) struct Checker {
    manifest: Manifest,
    /// The labels of recorded series.
    recorded: BTreeMap<String, Found>,
}

impl Checker {
    pub(crate) fn new() -> Self {
        Self {
            manifest: Manifest::load(),
            recorded: BTreeMap::new(),
        }
    }

    /// Makes the series of a recording rule known.
    pub(crate) fn record(&mut self, name: &str, expr: &str) -> Result<(), String> {
        let labels = self.check(expr)?;
        self.recorded.insert(name.to_owned(), labels);
        Ok(())
    }

    /// The labels of the samples, or the first error.
    pub(crate) fn check(&self, expr: &str) -> Result<Found, String> {
        let parsed = parser::parse(expr)?;
        self.labels(&parsed)
            .map_err(|error| format!("{error}\nin {expr}"))
    }

    fn labels(&self, expr: &Expr) -> Result<Found, String> {
        match expr {
            Expr::VectorSelector(selector) => self.selector(selector),
            Expr::MatrixSelector(matrix) => self.selector(&matrix.vs),
            Expr::Paren(paren) => self.labels(&paren.expr),
            Expr::Unary(unary) => self.labels(&unary.expr),
            Expr::Subquery(subquery) => self.labels(&subquery.expr),
            Expr::Aggregate(aggregate) => self.aggregate(aggregate),
            Expr::Binary(binary) => self.binary(binary),
            Expr::Call(call) => self.call(call),
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Ok(Found::new()),
            Expr::Extension(_) => Err("unknown expression".to_owned()),
        }
    }

    fn selector(&self, selector: &VectorSelector) -> Result<Found, String> {
        let name = selector.name.as_deref().ok_or("a selector without a name")?;
        let matchers = &selector.matchers.matchers;
        if let Some(labels) = self.recorded.get(name) {
            let unknown = matchers.iter().find(|matcher| !labels.contains(&matcher.name));
            return match unknown {
                None => Ok(labels.clone()),
                Some(matcher) => Err(format!("{name} has no label {}", matcher.name)),
            };
        }
        for matcher in matchers {
            let labels: &[(&str, &str)] = match matcher.op {
                // A variable of a dashboard is replaced by a regular expression.
                MatchOp::Equal => &[(&matcher.name, &matcher.value)],
                _ => {
                    self.has_label(name, &matcher.name)?;
                    &[]
                }
            };
            self.manifest.check(name, labels)?;
        }
        self.manifest.check(name, &[])?;
        let series = self.manifest.get(name).unwrap();
        Ok(series.labels.keys().cloned().collect())
    }

    fn has_label(&self, name: &str, label: &str) -> Result<(), String> {
        self.manifest.check(name, &[])?;
        match self.manifest.get(name).unwrap().labels.contains_key(label) {
            true => Ok(()),
            false => Err(format!("{name} has no label {label}")),
        }
    }

    fn aggregate(&self, aggregate: &AggregateExpr) -> Result<Found, String> {
        let labels = self.labels(&aggregate.expr)?;
        // These select series instead of adding them.
        let selects = ["topk", "bottomk"].contains(&aggregate.op.to_string().as_str());
        match &aggregate.modifier {
            _ if selects => Ok(labels),
            None => Ok(Found::new()),
            Some(LabelModifier::Include(by)) => {
                contains(&labels, by)?;
                Ok(by.labels.iter().cloned().collect())
            }
            Some(LabelModifier::Exclude(without)) => {
                contains(&labels, without)?;
                Ok(&labels - &without.labels.iter().cloned().collect())
            }
        }
    }

    fn binary(&self, binary: &BinaryExpr) -> Result<Found, String> {
        let left = self.labels(&binary.lhs)?;
        let right = self.labels(&binary.rhs)?;
        if is_scalar(&binary.rhs) {
            return Ok(left);
        }
        if is_scalar(&binary.lhs) {
            return Ok(right);
        }
        let modifier = binary.modifier.as_ref();
        let operator = binary.op.to_string();
        let keeps_left = ["and", "unless", "or"].contains(&operator.as_str());
        match modifier.and_then(|modifier| modifier.matching.as_ref()) {
            None if left == right => Ok(left),
            None => Err(format!(
                "`{operator}` between {left:?} and {right:?} never matches"
            )),
            Some(LabelModifier::Include(on)) => {
                contains(&left, on)?;
                contains(&right, on)?;
                let grouped = modifier.and_then(|modifier| modifier.card.labels());
                match grouped {
                    Some(added) => {
                        contains(&right, added)?;
                        Ok(&left | &added.labels.iter().cloned().collect())
                    }
                    None if keeps_left => Ok(left),
                    None => Ok(on.labels.iter().cloned().collect()),
                }
            }
            Some(LabelModifier::Exclude(_)) => Err("use `on` instead of `ignoring`".to_owned()),
        }
    }

    fn call(&self, call: &Call) -> Result<Found, String> {
        let name = call.func.name;
        let mut labels = Found::new();
        for argument in &call.args.args {
            labels.extend(self.labels(argument)?);
        }
        match name {
            "rate" | "increase" | "irate" => self.is_cumulative(call).map(|()| labels),
            "histogram_quantile" if labels.remove("le") => Ok(labels),
            "histogram_quantile" => Err("a quantile of buckets without `le`".to_owned()),
            "absent" | "vector" | "hour" | "day_of_week" | "scalar" | "time" => Ok(Found::new()),
            _ => Ok(labels),
        }
    }

    fn is_cumulative(&self, call: &Call) -> Result<(), String> {
        let function = call.func.name;
        match call.args.args.first().map(AsRef::as_ref) {
            Some(Expr::MatrixSelector(matrix)) => {
                let name = matrix.vs.name.as_deref().unwrap_or_default();
                match self.manifest.get(name) {
                    Some(series) if series.kind == Kind::Cumulative => Ok(()),
                    _ => Err(format!("{function} of {name}, which is no counter")),
                }
            }
            _ => Err(format!("{function} of something else than a counter")),
        }
    }
}

fn is_scalar(expr: &Expr) -> bool {
    match expr {
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => true,
        Expr::Paren(paren) => is_scalar(&paren.expr),
        Expr::Unary(unary) => is_scalar(&unary.expr),
        Expr::Binary(binary) => is_scalar(&binary.lhs) && is_scalar(&binary.rhs),
        Expr::Call(call) => ["scalar", "time"].contains(&call.func.name),
        _ => false,
    }
}

fn contains(labels: &Found, wanted: &Labels) -> Result<(), String> {
    match wanted.labels.iter().find(|label| !labels.contains(*label)) {
        None => Ok(()),
        Some(label) => Err(format!("no label {label} in {labels:?}")),
    }
}

#[test]
fn wrong_expressions_are_errors() {
    let checker = Checker::new();
    for (expr, part) in [
        ("dalston_queue_deepth > 1", "no program has the series"),
        ("sum by (model) (dalston_queue_depth)", "no label model"),
        ("rate(dalston_queue_depth[5m])", "which is no counter"),
        ("dalston_orchestrator_jobs_total{status=\"done\"}", "is never"),
        (
            "dalston_orchestrator_jobs_total{state=\"failed\"}",
            "no label state",
        ),
        (
            "histogram_quantile(0.5, sum(rate(dalston_engine_queue_wait_seconds_bucket[5m])))",
            "without `le`",
        ),
        ("dalston_engine_queue_wait_seconds_bucket{le=\"61\"}", "is never"),
        (
            "sum by (engine_id) (dalston_queue_depth) / sum(dalston_queue_depth)",
            "never matches",
        ),
        (
            "dalston_queue_depth and on (model) dalston_queue_depth",
            "no label model",
        ),
        ("sum by (engine_id (dalston_queue_depth)", ""),
    ] {
        let error = checker.check(expr).expect_err(expr);
        assert!(error.contains(part), "{expr}: {error}");
    }
}
