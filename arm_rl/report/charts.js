// Charts: readings under the pointer; a tap reads as well.

for (const chart of document.querySelectorAll(".chart")) {
  const points = JSON.parse(chart.dataset.points);
  const drawing = chart.querySelector("svg");
  const cursor = chart.querySelector(".cursor");
  const reading = chart.querySelector("output");
  const atRest = reading.textContent;

  drawing.addEventListener("pointermove", (event) => {
    const toUnits = drawing.getScreenCTM().inverse();
    const pointer = new DOMPoint(event.clientX, event.clientY).matrixTransform(toUnits);
    // Along the axis first: a reading is of a step, wherever the pointer is above it.
    const distance = ([x, y]) => Math.abs(x - pointer.x) + Math.abs(y - pointer.y) / 20;
    const nearest = points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    cursor.setAttribute("cx", nearest[0]);
    cursor.setAttribute("cy", nearest[1]);
    cursor.setAttribute("visibility", "visible");
    reading.textContent = nearest[2];
  });

  drawing.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    reading.textContent = atRest;
  });
}
