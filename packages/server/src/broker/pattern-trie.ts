/**
 * Finds the patterns that match a topic: a trie whose edges have one or more levels of a pattern. It is pure, and knows
 * nothing of queues.
 *
 * Invariant: each node except the root has values or at least two children, so a pattern adds at most two nodes.
 *
 * A match follows all places in the trie that the levels of the name so far can lead to. A place is visited once for each
 * level, so a match takes time in proportion to the levels of the name and the branches with wildcards, and not to the
 * patterns. Thousands of patterns that are made of wildcards have as many branches, so the visits of one match are limited.
 */
import { SluiceError } from '@sluice/protocol'

/** Maximum number of places that one match visits, each once for each level. They take about 10 ms. */
export const VISITS_MAX = 16_384

const ANY_LEVEL = '*'
const ANY_LEVELS = '#'

class Node<Value> {
  /** The levels between the parent and this node, at most 32: one bit of `reached` for each. */
  levels: readonly string[]
  /** Undefined if there is none. Most nodes have either values or children. */
  values: Set<Value> | undefined
  /** By their first level; undefined if there is none. */
  children: Map<string, Node<Value>> | undefined
  /** The last step of a match in which a place of this node was visited. */
  step = 0
  /** The places of this node that were visited in `step`. */
  reached = 0

  constructor(levels: readonly string[]) {
    this.levels = levels
  }
}

/** The places that one step of a match visits: `depths[i]` levels of `nodes[i]` have been passed. */
class Places<Value> {
  readonly nodes: Node<Value>[] = []
  readonly depths: number[] = []
}

export class PatternTrie<Value> {
  readonly #root = new Node<Value>([])
  /** Number of nodes, without the root. */
  nodes = 0
  /** Number of the current step, over all matches. */
  #step = 0

  add(pattern: string, value: Value): void {
    const levels = pattern.split('.')
    let node = this.#root
    for (let at = 0; at < levels.length; at += node.levels.length) {
      const child = node.children?.get(levels[at]!)
      node = child === undefined ? this.#append(node, levels.slice(at)) : this.#cut(node, child, levels, at)
    }
    node.values ??= new Set()
    node.values.add(value)
  }

  #append(parent: Node<Value>, levels: readonly string[]): Node<Value> {
    const node = new Node<Value>(levels)
    parent.children ??= new Map()
    parent.children.set(levels[0]!, node)
    this.nodes++
    return node
  }

  // The node after those first levels of `child` that the pattern `levels` has from `at` on. If these are not all of them, it is new.
  #cut(parent: Node<Value>, child: Node<Value>, levels: readonly string[], at: number): Node<Value> {
    const { length } = child.levels
    let same = 1
    while (same < length && child.levels[same] === levels[at + same]) same++
    if (same === length) return child
    const upper = this.#append(parent, child.levels.slice(0, same))
    child.levels = child.levels.slice(same)
    upper.children = new Map([[child.levels[0]!, child]])
    return upper
  }

  remove(pattern: string, value: Value): void {
    const path = this.#pathTo(pattern)
    const node = path.pop()
    if (node?.values === undefined) return
    node.values.delete(value)
    if (node.values.size > 0) return
    node.values = undefined
    const parent = path.pop()!
    if (node.children !== undefined) {
      this.#join(parent, node)
      return
    }
    parent.children!.delete(node.levels[0]!)
    if (parent.children!.size === 0) parent.children = undefined
    this.nodes--
    const above = path.pop()
    if (above !== undefined) this.#join(above, parent)
  }

  // Joins the node with its child if it has only this one and no values.
  #join(parent: Node<Value>, node: Node<Value>): void {
    if (node.values !== undefined || node.children?.size !== 1) return
    const [child] = node.children.values() as Iterable<Node<Value>>
    child!.levels = [...node.levels, ...child!.levels]
    parent.children!.set(child!.levels[0]!, child!)
    this.nodes--
  }

  // The nodes from the root to the node of the pattern; empty if there is none.
  #pathTo(pattern: string): Node<Value>[] {
    const levels = pattern.split('.')
    let node = this.#root
    const path = [node]
    for (let at = 0; at < levels.length; at += node.levels.length) {
      const child: Node<Value> | undefined = node.children?.get(levels[at]!)
      if (child === undefined || child.levels.some((level, index) => level !== levels[at + index])) return []
      path.push((node = child))
    }
    return path
  }

  /** The values of one pattern, which is not matched but looked up. */
  at(pattern: string): ReadonlySet<Value> {
    return this.#pathTo(pattern).at(-1)?.values ?? NO_VALUES
  }

  /** The values of all patterns that match the name. @throws SluiceError TOO_MANY_TARGETS */
  match(name: string): Value[] {
    let active = new Places<Value>()
    let visits = 0
    this.#step++
    this.#visit(this.#root, 0, active)
    for (const level of name.split('.')) {
      const next = new Places<Value>()
      this.#step++
      for (const [index, node] of active.nodes.entries()) {
        if (visits + next.nodes.length > VISITS_MAX) throw tooManyBranches(name)
        this.#follow(node, active.depths[index]!, level, next)
      }
      visits += next.nodes.length
      active = next
    }
    const { depths } = active
    return active.nodes.flatMap(({ levels, values }, index) =>
      values === undefined || depths[index] !== levels.length ? [] : [...values],
    )
  }

  // Visits the places to which `level` leads.
  #follow(node: Node<Value>, depth: number, level: string, next: Places<Value>): void {
    const { levels, children } = node
    if (depth > 0 && levels[depth - 1] === ANY_LEVELS) this.#visit(node, depth, next)
    if (depth < levels.length) {
      const wanted = levels[depth]
      if (wanted === level || wanted === ANY_LEVEL) this.#visit(node, depth + 1, next)
      return
    }
    const exact = children?.get(level)
    if (exact !== undefined) this.#visit(exact, 1, next)
    const any = children?.get(ANY_LEVEL)
    if (any !== undefined) this.#visit(any, 1, next)
  }

  // `#` also matches no level, so a place leads to the place after the next `#` at once.
  #visit(node: Node<Value>, depth: number, places: Places<Value>): void {
    const place = 1 << (depth - 1)
    if (node.step !== this.#step) {
      node.step = this.#step
      node.reached = 0
    } else if ((node.reached & place) !== 0) return
    node.reached |= place
    places.nodes.push(node)
    places.depths.push(depth)
    if (depth < node.levels.length) {
      if (node.levels[depth] === ANY_LEVELS) this.#visit(node, depth + 1, places)
      return
    }
    const anyLevels = node.children?.get(ANY_LEVELS)
    if (anyLevels !== undefined) this.#visit(anyLevels, 1, places)
  }
}

const NO_VALUES: ReadonlySet<never> = new Set<never>()

function tooManyBranches(name: string): SluiceError {
  return new SluiceError(
    'TOO_MANY_TARGETS',
    `The bindings with wildcards lead the topic ${name} along more than ${VISITS_MAX} branches. Remove bindings that have several wildcards.`,
  )
}
