// The scene list of Re-anchor Prompt Schedule, as nodes/prompts/timeline.py reads it: one line per scene, in seconds.
// Nothing here touches the page; tests/browser/test_timeline.py compares every function with the Python one.

const TIME = String.raw`(\d+:[0-5]\d(?:\.\d+)?|\d+(?:\.\d+)?)\s*s?`;
const LINE = new RegExp(String.raw`^${TIME}\s*(?:[-–]\s*${TIME})?\s*:(?!\d\d)\s*(\S.*)$`);
const PLACEHOLDER = /\{[^{}]*\}/g;
const HERO = "{hero}";
const CUT = "The scene transitions. ";
const EPSILON = 1e-6;

/**
 * {scenes: [{line, startS, endS, writtenEndS, text}], error: {line, message} or null}; line counts from 0.
 * endS: at most the film's length; writtenEndS: as the text says it, null where it says none.
 * Of an unknown name the scenes are given all the same: the times are known, and the words can be corrected.
 */
export function parseScenes(text, filmS) {
  const found = [];
  let unknown = null;
  const lines = text.split("\n");
  for (const [line, raw] of lines.entries()) {
    const trimmed = raw.trim();
    if (!trimmed || trimmed.startsWith("#")) continue;
    const match = LINE.exec(trimmed);
    if (!match) return failed(line, "A line needs its seconds, a colon and a text, as in '3: the hero waves'.");
    const [, start, end, words] = match;
    const scene = { line, startS: seconds(start), writtenEndS: end === undefined ? null : seconds(end), text: oneLine(words) };
    if (scene.writtenEndS !== null && scene.writtenEndS <= scene.startS) return failed(line, "A scene must end after it starts.");
    const strange = (words.match(PLACEHOLDER) ?? []).find((name) => name !== HERO);
    if (strange) unknown ??= { line, message: `${strange} is unknown: only {hero} stands for something.` };
    found.push(scene);
  }
  const read = joined(found, filmS);
  return { ...read, error: unknown ?? read.error };
}

/** Scenes that follow each other without gap, up to the end of the film. */
function joined(found, filmS) {
  if (!found.length) return failed(0, "Write one scene per line.");
  if (found[0].startS > EPSILON) return failed(found[0].line, "The film begins at 0 s.");
  for (let i = 1; i < found.length; i += 1) {
    const before = found[i - 1];
    const endS = before.writtenEndS ?? found[i].startS;
    if (found[i].startS <= before.startS || found[i].startS < endS - EPSILON) {
      return failed(found[i].line, "This scene overlaps the one before.");
    }
    if (found[i].startS > endS + EPSILON) {
      return failed(found[i].line, `Nothing happens between ${endS} and ${found[i].startS} s.`);
    }
  }
  const last = found.at(-1);
  if (last.writtenEndS !== null && last.writtenEndS < filmS - EPSILON) return failed(last.line, "The last scene ends before the film.");
  const scenes = found
    .map((scene, i) => ({ ...scene, endS: Math.min(found[i + 1]?.startS ?? filmS, filmS) }))
    .filter((scene) => scene.startS < filmS - EPSILON);
  return { scenes, error: null };
}

/** What every clip is told: [{startS, endS, scene, anchored, text}]. */
export function clipPrompts(scenes, { identity, hero, reanchorS, clipS, filmS }) {
  const count = Math.max(1, Math.ceil(filmS / clipS - EPSILON));
  const shown = Array.from({ length: count }, (_, index) => sceneShown(scenes, index * clipS, (index + 1) * clipS));
  return shown.map((scene, index) => {
    const anchored = isAnchored(index, clipS, reanchorS);
    const begins = scene !== shown[index - 1];
    const text = prompt(scenes[scene].text, anchored, begins, oneLine(identity), oneLine(hero));
    return { startS: index * clipS, endS: (index + 1) * clipS, scene, anchored, text };
  });
}

function sceneShown(scenes, startS, endS) {
  const overlaps = scenes.map((scene) => Math.min(endS, scene.endS) - Math.max(startS, scene.startS));
  const longest = Math.max(...overlaps);
  return overlaps.findIndex((overlap) => overlap > longest - EPSILON);
}

function isAnchored(index, clipS, reanchorS) {
  if (index === 0 || reanchorS === 0) return index === 0;
  const passed = (clip) => Math.floor((clip * clipS) / reanchorS + EPSILON);
  return passed(index) > passed(index - 1);
}

/** The words of a hard cut stay in front, in the clip that begins the scene alone. */
function prompt(scene, anchored, begins, identity, hero) {
  const hasCut = scene.startsWith(CUT);
  const cut = hasCut && begins ? CUT : "";
  const words = hasCut ? scene.slice(CUT.length) : scene;
  if (anchored && !words.includes(HERO)) return `${cut}${identity.replace(/\.+$/, "")}. ${words}`;
  return cut + (anchored ? words.replace(HERO, () => identity) : words).replaceAll(HERO, () => hero);
}

// Edits return the whole text; lines that are no scenes (notes, blank ones) stay where they are, and so does what lies
// beyond the film's end.

/** The join between scene `index` and the next one moved to `timeS`, kept between its neighbours' other ends. */
export function moveJoin(text, scenes, index, timeS, stepS) {
  const [before, after] = [scenes[index], scenes[index + 1]];
  const round = (value) => Math.round(value / stepS) * stepS;
  const to = Math.min(Math.max(round(timeS), before.startS + stepS), after.endS - stepS);
  if (!(to > before.startS && to < after.endS)) return text;
  return rewritten(text, [
    [before.line, { ...before, writtenEndS: before.writtenEndS === null ? null : to }],
    [after.line, { ...after, startS: to }],
  ]);
}

export function retell(text, scenes, index, words) {
  const scene = scenes[index];
  const kept = oneLine(words);
  return scene && kept ? rewritten(text, [[scene.line, { ...scene, text: kept }]]) : text;
}

/** Scene `index` cut in the middle; the second half is a scene of its own, with the same words. */
export function split(text, scenes, index, stepS) {
  const scene = scenes[index];
  const middle = Math.round((scene.startS + scene.endS) / 2 / stepS) * stepS;
  if (!(middle > scene.startS && middle < scene.endS)) return text;
  const lines = text.split("\n");
  lines[scene.line] = line({ ...scene, writtenEndS: scene.writtenEndS === null ? null : middle });
  lines.splice(scene.line + 1, 0, line({ ...scene, startS: middle }));
  return lines.join("\n");
}

/** Scene `index` taken away; its neighbour fills its time. The only scene stays. */
export function remove(text, scenes, index) {
  if (scenes.length < 2) return text;
  const lines = text.split("\n");
  const gone = scenes[index];
  if (index > 0) {
    const before = scenes[index - 1];
    lines[before.line] = line({ ...before, writtenEndS: before.writtenEndS === null ? null : gone.writtenEndS });
  } else {
    lines[scenes[1].line] = line({ ...scenes[1], startS: 0 });
  }
  lines.splice(gone.line, 1);
  return lines.join("\n");
}

function rewritten(text, changes) {
  const lines = text.split("\n");
  for (const [index, scene] of changes) lines[index] = line(scene);
  return lines.join("\n");
}

function line({ startS, writtenEndS, text }) {
  const exact = (value) => time(value, 6); // rounded to 3 digits it would not meet its neighbour any more
  return `${exact(startS)}${writtenEndS === null ? "" : `-${exact(writtenEndS)}`}: ${text}`;
}

/** Seconds as short as they can be written: 3, 3.5, 3.25. */
export function time(value, digits = 3) {
  return String(Number(value.toFixed(digits)));
}

function seconds(written) {
  const [minutes, rest] = written.includes(":") ? written.split(":") : ["0", written];
  return 60 * Number(minutes) + Number(rest);
}

function oneLine(text) {
  return text.split(/\s+/).filter(Boolean).join(" ");
}

function failed(line, message) {
  return { scenes: [], error: { line, message } };
}
