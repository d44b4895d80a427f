//! A panel of a board.

use serde_json::{Value, json};

/// A panel. Its description says what the figure is and which value is bad.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    title: &'static str,
    description: &'static str,
    kind: Kind,
    /// The id of Grafana's unit.
    unit: &'static str,
    targets: Vec<(String, String)>,
    has_exemplars: bool,
    /// The board that shows more, or the search for traces.
    link: Link,
    pub(super) width: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Stat,
    Series,
    Stacked,
    Heatmap,
    Table,
    Traces,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Link {
    Board(&'static str),
    Traces,
    Alerts,
}

/// Lines over time.
pub(super) fn series(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    panel(title, Kind::Series, unit, description)
}

/// One current value.
pub(super) fn stat(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    Panel {
        width: 6,
        ..panel(title, Kind::Stat, unit, description)
    }
}

/// Areas that add up.
pub(super) fn stacked(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    panel(title, Kind::Stacked, unit, description)
}

/// The buckets of a histogram over time.
pub(super) fn heatmap(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    panel(title, Kind::Heatmap, unit, description)
}

/// A line for each series.
pub(super) fn table(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    panel(title, Kind::Table, unit, description)
}

/// The newest traces of a service in Jaeger.
pub(super) fn traces(title: &'static str, description: &'static str, service: &'static str) -> Panel {
    let panel = Panel {
        width: 24,
        ..panel(title, Kind::Traces, "short", description)
    };
    panel.target(service, "")
}

fn panel(title: &'static str, kind: Kind, unit: &'static str, description: &'static str) -> Panel {
    Panel {
        title,
        description,
        kind,
        unit,
        targets: Vec::new(),
        has_exemplars: false,
        link: Link::Board("service-details"),
        width: 8,
    }
}

impl Panel {
    /// A query, and the legend of its series.
    pub(super) fn target(mut self, expr: impl Into<String>, legend: &str) -> Self {
        self.targets.push((expr.into(), legend.to_owned()));
        self
    }

    pub(super) fn targets(mut self, targets: impl IntoIterator<Item = (String, String)>) -> Self {
        self.targets.extend(targets);
        self
    }

    /// Shows exemplars, whose dots open their traces.
    pub(super) fn exemplars(mut self) -> Self {
        self.has_exemplars = true;
        self.link = Link::Traces;
        self
    }

    pub(super) fn link(mut self, link: Link) -> Self {
        self.link = link;
        self
    }

    /// For a value beside wider panels.
    pub(super) fn narrow(mut self) -> Self {
        self.width = 4;
        self
    }

    pub(super) fn wide(mut self) -> Self {
        self.width = 12;
        self
    }

    pub(super) fn height(&self) -> u64 {
        match self.kind {
            Kind::Stat => 4,
            _ => 8,
        }
    }

    pub(super) fn json(&self, id: u64, x: u64, y: u64) -> Value {
        let source = match self.kind {
            Kind::Traces => json!({"type": "jaeger", "uid": "jaeger"}),
            _ => json!({"type": "prometheus", "uid": "${datasource}"}),
        };
        let targets: Vec<Value> = self
            .targets
            .iter()
            .zip('A'..)
            .map(|((expr, legend), id)| self.target_json(expr, legend, id, &source))
            .collect();
        let mut panel = json!({
            "id": id,
            "type": self.kind.id(),
            "title": self.title,
            "description": self.description,
            "datasource": source,
            "gridPos": {"h": self.height(), "w": self.width, "x": x, "y": y},
            "targets": targets,
            "links": [self.link.json()],
            "fieldConfig": {"defaults": {"unit": self.unit}, "overrides": []},
            "options": self.kind.options(),
        });
        if self.kind != Kind::Traces {
            // The lower bound of `$__rate_interval`.
            panel["interval"] = "$interval".into();
        }
        if self.kind == Kind::Heatmap {
            panel["options"]["yAxis"] = json!({"unit": self.unit});
        }
        if let Kind::Series | Kind::Stacked = self.kind {
            let stacking = if self.kind == Kind::Stacked {
                "normal"
            } else {
                "none"
            };
            let fill = if self.kind == Kind::Stacked { 30 } else { 0 };
            panel["fieldConfig"]["defaults"]["custom"] =
                json!({"fillOpacity": fill, "showPoints": "never", "stacking": {"mode": stacking}});
            if self.unit != "celsius" {
                panel["fieldConfig"]["defaults"]["min"] = json!(0);
            }
        }
        panel
    }

    fn target_json(&self, expr: &str, legend: &str, id: char, source: &Value) -> Value {
        if self.kind == Kind::Traces {
            return json!({"refId": id.to_string(), "datasource": source, "queryType": "search", "service": expr, "limit": 20});
        }
        let mut target = json!({
            "refId": id.to_string(),
            "datasource": source,
            "expr": expr,
            "legendFormat": legend,
        });
        match self.kind {
            Kind::Heatmap => target["format"] = "heatmap".into(),
            Kind::Table => {
                target["format"] = "table".into();
                target["instant"] = true.into();
                target["range"] = false.into();
            }
            _ => {}
        }
        if self.has_exemplars {
            target["exemplar"] = true.into();
        }
        target
    }
}

impl Kind {
    const fn id(self) -> &'static str {
        match self {
            Self::Stat => "stat",
            Self::Series | Self::Stacked => "timeseries",
            Self::Heatmap => "heatmap",
            Self::Table | Self::Traces => "table",
        }
    }

    fn options(self) -> Value {
        match self {
            Self::Stat => json!({
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
                "colorMode": "none",
                "graphMode": "area",
            }),
            Self::Series | Self::Stacked => json!({
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            Self::Heatmap => json!({"calculate": false}),
            Self::Table | Self::Traces => json!({"showHeader": true}),
        }
    }
}

impl Link {
    fn json(self) -> Value {
        let (title, url) = match self {
            Self::Board(uid) => (
                "More",
                format!("/d/{uid}?${{__url_time_range}}&${{engine_id:queryparam}}&${{service:queryparam}}"),
            ),
            Self::Traces => (
                "Traces",
                "/explore?schemaVersion=1&panes=%7B%22a%22:%7B%22datasource%22:%22jaeger%22,%22queries%22:%5B%7B%22queryType%22:%22search%22,\
                 %22service%22:%22dalston-gateway%22%7D%5D%7D%7D"
                    .to_owned(),
            ),
            Self::Alerts => ("Alerts", "/alerting/list".to_owned()),
        };
        json!({
            "title": title, "url": url, "type": "link", "icon": "external link", "tooltip": "", "tags": [],
            "asDropdown": false, "includeVars": false, "keepTime": false, "targetBlank": false,
        })
    }
}
