/** The graph of imports: circles in it, and imports that violate the layers. */
import type { Source } from './source.js'

export interface Edge {
  readonly from: string
  readonly to: string
}

export type Graph = ReadonlyMap<string, ReadonlySet<string>>

export function edgeOf(text: string): Edge {
  const [from = '', to = ''] = text.split(' → ')
  return { from, to }
}

/** The graph of these files, without the edges that are given as `from → to`. */
export function graphOf(sources: readonly Source[], without: Iterable<string> = []): Graph {
  const graph = new Map(sources.map(({ path, imports }) => [path, new Set(imports)]))
  for (const text of without) {
    const { from, to } = edgeOf(text)
    graph.get(from)?.delete(to)
  }
  return graph
}

/** The shortest path between two files; undefined if there is none. */
export function pathBetween(graph: Graph, from: string, to: string): string[] | undefined {
  const before = new Map<string, string | undefined>([[from, undefined]])
  for (const file of before.keys()) {
    if (file === to) {
      const path: string[] = []
      for (let at: string | undefined = to; at !== undefined; at = before.get(at)) path.unshift(at)
      return path
    }
    for (const next of graph.get(file) ?? []) if (!before.has(next)) before.set(next, file)
  }
  return undefined
}

/** The shortest circle through each import that is part of one; each circle is listed once. */
export function circlesIn(graph: Graph): string[] {
  const circles = new Set<string>()
  for (const [from, imports] of graph) {
    for (const to of imports) {
      const path = pathBetween(graph, to, from)
      if (path === undefined) continue
      const first = path.indexOf(path.toSorted()[0]!)
      circles.add([...path.slice(first), ...path.slice(0, first)].join(' → '))
    }
  }
  return [...circles]
}

/**
 * Folders, from the lowest layer up. A file imports from its own folder and from lower layers; folders of one layer do not
 * import each other.
 */
const FLOORS: readonly (readonly string[])[] = [
  ['packages/protocol/src'],
  ['packages/server/src/queue', 'packages/server/src/log', 'packages/server/src/net', 'packages/client/src'],
  ['packages/server/src/state'],
  ['packages/server/src/broker'],
  ['packages/server/src/session'],
  // server.ts, which assembles the parts, and the files with which the server measures its own process.
  ['packages/server/src'],
  ['packages/server/src/cli'],
  // Tools for tests.
  ['packages/server/src/testing', 'packages/client/src/testing'],
]
/** The SDK. Of the layers above the SDK, only the folders in `USES_CLIENT` may import it. */
const CLIENT = 'packages/client/src'
const USES_CLIENT = ['packages/server/src/cli', 'packages/client/src/testing']

interface Place {
  readonly floor: number
  readonly folder: string
}

/** The deepest listed folder that contains the file. */
function placeOf(path: string): Place {
  let found: Place = { floor: -1, folder: '' }
  for (const [floor, folders] of FLOORS.entries()) {
    for (const folder of folders)
      if (path.startsWith(`${folder}/`) && folder.length > found.folder.length) found = { floor, folder }
  }
  return found
}

/** Imports that violate the layers, as `from → to`. */
export function againstFloors(sources: readonly Source[]): string[] {
  const found: string[] = []
  for (const { path, imports } of sources) {
    const from = placeOf(path)
    for (const other of imports) {
      const to = placeOf(other)
      if (to.folder === from.folder && to.floor !== -1) continue
      const isAllowed =
        to.floor !== -1 &&
        to.floor < from.floor &&
        (to.folder !== CLIENT || USES_CLIENT.includes(from.folder))
      if (!isAllowed) found.push(`${path} → ${other}`)
    }
  }
  return found
}
