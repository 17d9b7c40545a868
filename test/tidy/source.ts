/**
 * Source files for the tidy test: the imports of each file, the length of its functions, and the places at which it reads
 * bytes at a numeric offset. Files are parsed, not searched, so that strings and comments do not count.
 */
import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join, posix } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseAst } from 'vitest/node'

export const ROOT = fileURLToPath(new URL('../..', import.meta.url))

export interface Source {
  /** Path from the root of the project. */
  readonly path: string
  readonly lines: number
  /** Files of the project that this file imports, each once; imports of types count too. */
  readonly imports: readonly string[]
  readonly functions: readonly { readonly name: string; readonly lines: number }[]
  /** Lines on which bytes are read or written at a number: `bytes[at + 4]`, `readU32(bytes, at + 12)`. */
  readonly rawOffsets: readonly number[]
}

interface Node {
  readonly type: string
  readonly start: number
  readonly end: number
  readonly [field: string]: unknown
}

const FUNCTIONS: ReadonlySet<string> = new Set([
  'FunctionDeclaration',
  'FunctionExpression',
  'ArrowFunctionExpression',
])
const IMPORTS: ReadonlySet<string> = new Set([
  'ImportDeclaration',
  'ExportNamedDeclaration',
  'ExportAllDeclaration',
  'ImportExpression',
  'TSImportType',
])
/** Functions that read or write a number in bytes; their offset is the first or second argument. */
const ACCESS = /^(read|write|get|set)(U|F|I|Uint|Int|UInt|BigU?Int|Float|Double)\d+(LE|BE)?$/
const BYTES = /(bytes|buffer|batch|record|header|frame|payload|block|page|entry|view)$/i

export function parseSource(path: string, text: string): Source {
  const starts = lineStarts(text)
  const lineOf = (position: number): number => {
    let low = 0
    for (let high = starts.length; low + 1 < high;) {
      const middle = (low + high) >>> 1
      if (starts[middle]! <= position) low = middle
      else high = middle
    }
    return low + 1
  }
  const imports = new Set<string>()
  const functions: { name: string; lines: number }[] = []
  const rawOffsets = new Set<number>()
  const visit = (node: Node, name: string): void => {
    if (IMPORTS.has(node.type)) {
      const target = targetOf(path, node)
      if (target !== undefined) imports.add(target)
    }
    const inner = nameWithin(node, name)
    if (FUNCTIONS.has(node.type))
      functions.push({ name: inner, lines: lineOf(node.end) - lineOf(node.start) + 1 })
    if (isRawOffset(node)) rawOffsets.add(lineOf(node.start))
    for (const child of childrenOf(node)) visit(child, inner)
  }
  visit(parseAst(text, { lang: 'ts' }) as unknown as Node, '')
  return {
    path,
    lines: starts.length - (text.endsWith('\n') ? 1 : 0),
    imports: [...imports],
    functions,
    rawOffsets: [...rawOffsets],
  }
}

/** The source files of the packages, without their tests. */
export function packageSources(): Source[] {
  const sources: Source[] = []
  for (const packageName of readdirSync(join(ROOT, 'packages'))) {
    const folder = posix.join('packages', packageName, 'src')
    for (const name of readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })) {
      const path = posix.join(folder, name.replaceAll('\\', '/'))
      if (!path.endsWith('.ts') || path.endsWith('.d.ts') || path.endsWith('.test.ts')) continue
      sources.push(parseSource(path, readFileSync(join(ROOT, path), 'utf8')))
    }
  }
  return sources
}

function lineStarts(text: string): number[] {
  const starts = [0]
  for (let at = text.indexOf('\n'); at !== -1; at = text.indexOf('\n', at + 1)) starts.push(at + 1)
  return starts
}

function isNode(value: unknown): value is Node {
  return typeof (value as Node | null | undefined)?.type === 'string'
}

function childrenOf(node: Node): Node[] {
  const children: Node[] = []
  for (const field in node) {
    const value = node[field]
    if (typeof value !== 'object') continue
    if (isNode(value)) children.push(value)
    else if (Array.isArray(value)) for (const one of value) if (isNode(one)) children.push(one)
  }
  return children
}

// The file that an import names, if it belongs to the project.
function targetOf(from: string, node: Node): string | undefined {
  const source = (node['source'] ?? node['argument']) as Node | null | undefined
  const specifier = source?.['value'] ?? (source?.['literal'] as Node | undefined)?.['value']
  if (typeof specifier !== 'string') return undefined
  const own = /^@sluice\/([a-z]+)$/.exec(specifier)?.[1]
  if (own !== undefined) return `packages/${own}/src/index.ts`
  if (!specifier.startsWith('.')) return undefined
  return posix.join(dirname(from), specifier.replace(/\.js$/, '.ts'))
}

// The name of functions directly in this node: `Class.method`, or the name of the variable or property.
function nameWithin(node: Node, outer: string): string {
  const named = (node['key'] ?? node['id']) as Node | null | undefined
  const own = named?.['name']
  if (typeof own !== 'string') return outer
  const text = named?.type === 'PrivateIdentifier' ? `#${own}` : own
  return outer === '' ? text : `${outer}.${text}`
}

function isRawOffset(node: Node): boolean {
  if (node.type === 'MemberExpression' && node['computed'] === true)
    return BYTES.test(nameOf(node['object'] as Node)) && hasNumber(node['property'] as Node)
  if (node.type !== 'CallExpression' || !ACCESS.test(nameOf(node['callee'] as Node))) return false
  return (node['arguments'] as Node[]).slice(0, 2).some(hasNumber)
}

function nameOf(node: Node): string {
  if (node.type === 'TSNonNullExpression') return nameOf(node['expression'] as Node)
  const named = node.type === 'MemberExpression' ? (node['property'] as Node) : node
  const name = named['name']
  return typeof name === 'string' ? name : ''
}

// Whether the node is a number other than 0, or a sum that contains one.
function hasNumber(node: Node): boolean {
  if (node.type === 'Literal') return typeof node['value'] === 'number' && node['value'] !== 0
  if (node.type !== 'BinaryExpression' || node['operator'] !== '+') return false
  return hasNumber(node['left'] as Node) || hasNumber(node['right'] as Node)
}
