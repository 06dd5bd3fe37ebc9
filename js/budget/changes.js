// Whether a graph is as it was, cheaply: graphToPrompt takes several milliseconds on a large graph.

/** A text that changes when a value, a link, a node or its mode does, inside subgraphs too; positions are left out. */
export function signatureOf(graph) {
  const parts = [];
  for (const node of graph.nodes) {
    parts.push(node.id, node.type, node.mode);
    for (const { value } of (node.widgets ?? []).filter(isQueued)) parts.push(typeof value === "object" ? JSON.stringify(value) : value);
    if (node.subgraph) parts.push(signatureOf(node.subgraph));
  }
  for (const link of graph.links.values()) parts.push(link.origin_id, link.origin_slot, link.target_id, link.target_slot);
  return parts.join("\n");
}

/** Not the editor's own previews ($$...), whose text changes with every message of a run. */
function isQueued({ name, options }) {
  return options?.serialize !== false && !name.startsWith("$$");
}
