// `element` stays as it is when its content is drawn anew, so it is the one that listens
const show = (url) => {
  props.message = "";
  props.value = url;
  trigger("input");
};
const read = (file) => {
  if (!file) return;
  if (file.size > props.max_bytes) {
    props.message = `The picture has ${(file.size / 1e6).toFixed(1)} MB; at most ${props.megabytes} MB are taken.`;
    return;
  }
  const reader = new FileReader();
  reader.onload = () => show(reader.result);
  reader.onerror = () => { props.message = "The file could not be read."; };
  reader.readAsDataURL(file);
};
element.addEventListener("change", (event) => {
  if (event.target.type !== "file") return;
  read(event.target.files[0]);
  event.target.value = "";
});
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.classList.contains("clear")) show(null);
  else show(props.examples[Number(button.dataset.example)].url);
});
for (const kind of ["dragover", "drop"]) {
  element.addEventListener(kind, (event) => {
    event.preventDefault();
    if (kind === "drop") read(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (file) read(file);
});
