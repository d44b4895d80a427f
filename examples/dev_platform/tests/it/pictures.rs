//! Draws boards without Grafana: the panels, with the data that Prometheus has.

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// Pixels of a column and of a line of Grafana's grid.
const COLUMN: u32 = 60;
const LINE: u32 = 30;
/// The names that a panel has room for.
const LEGENDS: usize = 4;
const FONT: &str = "sans-serif";

/// The points of a series by its legend.
pub(crate) type Lines = Vec<(String, Vec<(f64, f64)>)>;

/// A board of the stack.
pub(crate) struct Picture<'a> {
    pub(crate) board: &'a Value,
    /// Seconds since 1970.
    pub(crate) time: Range<f64>,
}

impl Picture<'_> {
    /// Draws the board into a file. `query` returns the lines of an expression with a legend.
    pub(crate) fn draw(&self, path: &Path, query: impl Fn(&str, &str) -> Lines) -> Drawn {
        let panels = self.board["panels"].as_array().ok_or("no panels")?;
        let bottom = panels.iter().map(|panel| grid(panel, "y") + grid(panel, "h"));
        let height = bottom.max().unwrap_or(0) * LINE;
        let root = SVGBackend::new(path, (24 * COLUMN, height + LINE)).into_drawing_area();
        root.fill(&WHITE)?;
        let title = format!("{} ({} panels)", text(&self.board["title"]), panels.len());
        root.draw(&Text::new(title, (8, 8), (FONT, 18)))?;
        for panel in panels {
            let corner = (grid(panel, "x") * COLUMN, grid(panel, "y") * LINE + LINE);
            let size = (grid(panel, "w") * COLUMN, grid(panel, "h") * LINE);
            let area = root.clone().shrink(corner, size);
            if panel["type"] == "row" {
                area.draw(&Text::new(text(&panel["title"]), (8, 8), (FONT, 15)))?;
                continue;
            }
            let area = area.margin(3, 3, 3, 3);
            let (width, height) = area.dim_in_pixel();
            let frame = [(0, 0), (width as i32 - 1, height as i32 - 1)];
            area.draw(&Rectangle::new(frame, BLACK.mix(0.2)))?;
            area.draw(&Text::new(text(&panel["title"]), (8, 6), (FONT, 13)))?;
            let targets = panel["targets"].as_array().into_iter().flatten();
            let lines = targets.flat_map(|target| match target["expr"].as_str() {
                Some(expr) => query(expr, target["legendFormat"].as_str().unwrap_or_default()),
                None => Vec::new(),
            });
            self.panel(panel, &area.margin(24, 2, 6, 6), lines.collect())?;
        }
        root.present()?;
        Ok(())
    }

    fn period(&self) -> Range<f64> {
        0.0..self.time.end - self.time.start
    }

    fn panel(&self, panel: &Value, area: &Area<'_>, lines: Lines) -> Drawn {
        let unit = text(&panel["fieldConfig"]["defaults"]["unit"]);
        let last = |points: &[(f64, f64)]| points.last().map_or(f64::NAN, |(_, value)| *value);
        match text(&panel["type"]) {
            "timeseries" => self.chart(panel, area, unit, lines),
            "heatmap" => self.heatmap(area, &lines),
            "stat" => {
                for (index, (name, points)) in lines.iter().take(2).enumerate() {
                    let shown = format!("{} {name}", number(last(points), unit));
                    let place = (12, 20 + 40 * index as i32);
                    area.draw(&Text::new(shown, place, (FONT, 26)))?;
                }
                Ok(())
            }
            _ if panel["datasource"]["type"] == "jaeger" => {
                area.draw(&Text::new("traces from Jaeger", (8, 10), (FONT, 12)))?;
                Ok(())
            }
            _ => {
                for (index, (name, points)) in lines.iter().take(8).enumerate() {
                    let row = format!("{name}  {}", number(last(points), unit));
                    area.draw(&Text::new(row, (4, 4 + 16 * index as i32), (FONT, 11)))?;
                }
                Ok(())
            }
        }
    }

    /// Lines, or areas that add up.
    fn chart(&self, panel: &Value, area: &Area<'_>, unit: &str, mut lines: Lines) -> Drawn {
        let mode = &panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"];
        let is_stacked = mode == "normal";
        if is_stacked {
            let mut sums: BTreeMap<u64, f64> = BTreeMap::new();
            for (time, value) in lines.iter_mut().flat_map(|(_, points)| points) {
                let sum = sums.entry(time.to_bits()).or_default();
                *sum += *value;
                *value = *sum;
            }
        }
        let values = lines
            .iter()
            .flat_map(|(_, points)| points)
            .map(|(_, value)| *value);
        let most = values.fold(0.0, f64::max) * 1.1;
        let (chart, legend) = area.split_vertically(area.dim_in_pixel().1 as i32 - 16);
        let mut chart = ChartBuilder::on(&chart)
            .x_label_area_size(18)
            .y_label_area_size(56)
            .build_cartesian_2d(self.period(), 0.0..if most > 0.0 { most } else { 1.0 })?;
        chart
            .configure_mesh()
            .x_labels(4)
            .y_labels(4)
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.1))
            .label_style((FONT, 10))
            .x_label_formatter(&|time| format!("{time:.0} s"))
            .y_label_formatter(&|value| number(*value, unit))
            .draw()?;
        // The largest sum is drawn first, and those below it over it.
        for (index, (_, points)) in lines.iter().enumerate().rev() {
            let colour = Palette99::pick(index);
            let points = points
                .iter()
                .map(|(time, value)| (time - self.time.start, *value));
            match is_stacked {
                true => chart.draw_series(AreaSeries::new(points, 0.0, colour.mix(0.7)))?,
                false => chart.draw_series(LineSeries::new(points, colour))?,
            };
        }
        let mut x = 56;
        for (index, (name, _)) in lines.iter().take(LEGENDS).enumerate() {
            let style = (FONT, 10).into_font().color(&Palette99::pick(index));
            let name: String = name.chars().take(26).collect();
            legend.draw(&Text::new(name.clone(), (x, 2), style))?;
            x += 14 + 6 * name.len() as i32;
        }
        Ok(())
    }

    /// The increase of each bucket: the darker, the more.
    fn heatmap(&self, area: &Area<'_>, lines: &Lines) -> Drawn {
        let mut buckets: Vec<_> = lines.iter().collect();
        let bound = |name: &str| name.trim_start_matches('+').parse().unwrap_or(f64::INFINITY);
        buckets.sort_by(|(left, _), (right, _)| f64::total_cmp(&bound(left), &bound(right)));
        let values = buckets
            .iter()
            .flat_map(|(_, points)| points)
            .map(|(_, value)| *value);
        let most = values.fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let names: Vec<&str> = buckets.iter().map(|(name, _)| &**name).collect();
        let mut chart = ChartBuilder::on(area)
            .x_label_area_size(18)
            .y_label_area_size(56)
            .build_cartesian_2d(self.period(), 0.0..names.len().max(1) as f64)?;
        let label = |place: &f64| {
            names
                .get(*place as usize)
                .map_or(String::new(), |name| (*name).to_owned())
        };
        chart
            .configure_mesh()
            .x_labels(4)
            .y_labels(names.len().min(8))
            .disable_mesh()
            .label_style((FONT, 10))
            .x_label_formatter(&|time| format!("{time:.0} s"))
            .y_label_formatter(&label)
            .draw()?;
        // Buckets are cumulative.
        for (index, (_, points)) in buckets.iter().enumerate() {
            for (place, (time, value)) in points.iter().enumerate() {
                let below = index.checked_sub(1).and_then(|below| buckets[below].1.get(place));
                let here = value - below.map_or(0.0, |(_, value)| *value);
                let step = points.get(place + 1).map_or(1.0, |(next, _)| next - time);
                if here > 0.0 {
                    let time = time - self.time.start;
                    let corners = [(time, index as f64), (time + step, index as f64 + 1.0)];
                    let style = BLUE.mix(0.15 + 0.85 * here / most).filled();
                    chart.draw_series([Rectangle::new(corners, style)])?;
                }
            }
        }
        Ok(())
    }
}

fn grid(panel: &Value, side: &str) -> u32 {
    let place = panel["gridPos"][side].as_u64();
    place.and_then(|place| u32::try_from(place).ok()).unwrap_or(0)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A value with its unit.
fn number(value: f64, unit: &str) -> String {
    let plain = |value: f64| match value.abs() {
        small if small > 0.0 && small < 0.001 => format!("{value:.1e}"),
        large if large >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.3}")
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned(),
    };
    match unit {
        "percentunit" => format!("{} %", plain(value * 100.0)),
        "bytes" => format!("{} MB", plain(value / 1e6)),
        "s" if value < 0.1 => format!("{} ms", plain(value * 1000.0)),
        "s" | "h" => format!("{} {unit}", plain(value)),
        "reqps" | "ops" => format!("{} /s", plain(value)),
        "bool_yes_no" => if value > 0.0 { "yes" } else { "no" }.to_owned(),
        "celsius" => format!("{} °C", plain(value)),
        "watt" => format!("{} W", plain(value)),
        "watth" => format!("{} Wh", plain(value)),
        "currencyUSD" => format!("$ {}", plain(value)),
        _ => plain(value),
    }
}
