// Whether a graph is as it was, cheaply: graphToPrompt takes several milliseconds on a large graph.

/** A text that changes when a value, a link, a node or its mode does, inside subgraphs too; positions are left out. */
export function signatureOf(graph) {
  const parts = [];
  for (const node of graph.nodes) {
    parts.push(node.id, node.type, node.mode);
    for (const { value } of (node.widgets ?? []).filter(isQueued)) parts.push(textOf(value));
    if (node.subgraph) parts.push(signatureOf(node.subgraph));
  }
  for (const link of graph.links.values()) parts.push(link.origin_id, link.origin_slot, link.target_id, link.target_slot);
  return parts.join("\n");
}

/** Not the editor's own previews ($$...), whose text changes with every message of a run. */
function isQueued({ name, options }) {
  return options?.serialize !== false && !String(name ?? "").startsWith("$$");
}

/** Other packs' values may be anything; changes inside one that points to itself are not seen. */
function textOf(value) {
  try {
    return typeof value === "object" ? JSON.stringify(value) : value;
  } catch {
    return "[circular]";
  }
}
