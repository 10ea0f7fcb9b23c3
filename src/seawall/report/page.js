document.querySelectorAll(".swipe").forEach(function (swipe) {
  var range = swipe.querySelector("input[type=range]");
  var stage = swipe.querySelector(".stage");
  function move() { stage.style.setProperty("--at", range.value + "%"); }
  range.addEventListener("input", move);
  move();
});
function hints() {
  document.querySelectorAll(".sideways").forEach(function (hint) {
    var table = hint.nextElementSibling;
    hint.hidden = table.scrollWidth <= table.clientWidth + 1;
  });
}
hints();
window.addEventListener("resize", hints);
document.querySelectorAll("details").forEach(function (part) { part.addEventListener("toggle", hints); });
window.addEventListener("beforeprint", function () {
  document.querySelectorAll("details").forEach(function (part) { part.open = true; });
});
