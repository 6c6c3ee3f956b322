"use strict";
const figures = JSON.parse(document.getElementById("figure-data").textContent);
const plots = document.querySelectorAll(".plot");
const axis = document.getElementById("axis");
const dark = matchMedia("(prefers-color-scheme: dark)");

function draw() {
  const style = getComputedStyle(document.body);
  const muted = dark.matches ? "#98a3b3" : "#5c6878";
  const line = dark.matches ? "#2d333d" : "#dfe3e9";
  const layout = {
    margin: { l: 56, r: 16, t: 8, b: 42 },
    hovermode: "x unified",
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: style.fontFamily, size: 12, color: muted },
    hoverlabel: { bgcolor: dark.matches ? "#1b1f26" : "#ffffff", namelength: -1 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    xaxis: { title: { text: axis.selectedOptions[0].textContent }, gridcolor: line, zeroline: false },
    yaxis: { gridcolor: line, zeroline: false, rangemode: "tozero", exponentformat: "e" },
  };
  figures.forEach((figure, i) =>
    Plotly.react(plots[i], figure[axis.value], layout, { responsive: true, displayModeBar: false }),
  );
}

axis.addEventListener("change", draw);
dark.addEventListener("change", draw);
draw();
