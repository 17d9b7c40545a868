/**
 * Compiles and runs the programs of the pages, and records their output by page and line. Also reads the help of the
 * command line.
 */
import { execFile } from 'node:child_process'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { formatWithOptions } from 'node:util'
import { runCommand } from '../integration/command.js'
import { readReadme, type Page } from './pages.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
/** The programs are in the workspace, so that they find its packages. */
const directory = join(root, 'test/dist/guide')

/** The output of the programs: for each page and line, the printed strings in order. */
const printed = new Map<string, string[]>()

function guideLog(page: string, line: number, ...values: unknown[]): void {
  const place = `${page}:${line}`
  const texts = printed.get(place) ?? []
  printed.set(place, texts)
  texts.push(formatWithOptions({ breakLength: Infinity, compact: true }, ...values))
}

export function printedAt(page: Page, line: number): readonly string[] {
  return printed.get(`${page.name}:${line}`) ?? []
}

/** `types`: type expressions that must exist in the client; `missing`: those that must be `never`. */
export async function writePrograms(
  pages: readonly Page[],
  types: readonly string[],
  missing: readonly string[],
): Promise<void> {
  await rm(directory, { recursive: true, force: true })
  await mkdir(directory, { recursive: true })
  const from = (path: string): string => relative(directory, join(root, path))
  const config = {
    extends: from('tsconfig.base.json'),
    compilerOptions: {
      types: ['node'],
      composite: false,
      declaration: false,
      declarationMap: false,
      sourceMap: false,
      noEmit: true,
      noUnusedLocals: false,
      noUnusedParameters: false,
      paths: Object.fromEntries(
        ['client', 'protocol', 'server'].map((name) => [
          `@sluice/${name}`,
          [from(`packages/${name}/src/index.ts`)],
        ]),
      ),
    },
    include: ['*.ts', from('packages/client/src/msgpackr.d.ts')],
  }
  await Promise.all([
    writeFile(join(directory, 'tsconfig.json'), JSON.stringify(config)),
    writeFile(
      join(directory, 'log.d.ts'),
      'declare function guideLog(page: string, line: number, ...values: unknown[]): void\n',
    ),
    writeFile(join(directory, 'types.ts'), typesProgram(types, missing)),
    writeFile(join(directory, 'project.ts'), readReadme()),
    ...pages.map((page) => writeFile(programOf(page), page.program)),
  ])
}

function typesProgram(types: readonly string[], missing: readonly string[]): string {
  const named = types.map((type, index) => `export type T${index} = NonNullable<sluice.${type}>\n`)
  // If an option is missing, the compiler's error names it.
  const complete = missing.map((type, index) => `export const c${index}: Record<${type}, true> = {}\n`)
  return `import type * as sluice from '@sluice/client'\n${named.join('')}${complete.join('')}`
}

function programOf({ name }: Page): string {
  return join(directory, `${name}.ts`)
}

/** The output of the compiler; empty without errors. */
export function compilePrograms(): Promise<string> {
  const require = createRequire(import.meta.url)
  const compiler = join(require.resolve('typescript/package.json'), '../bin/tsc')
  return new Promise((resolve) => {
    execFile(process.execPath, [compiler, '-p', directory, '--pretty', 'false'], (error, stdout, stderr) =>
      resolve(error === null ? '' : stdout + stderr || error.message),
    )
  })
}

/** The help of a command. */
export async function helpOf(command: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await runCommand([...command, '--help'], {}, '')
  if (code !== 0) throw new Error(`sluice ${command.join(' ')} --help: ${stderr}`)
  return stdout
}

/** Lets the processes that a program starts find the packages. */
export function enterPrograms(): () => void {
  const before = process.cwd()
  process.chdir(directory)
  return () => process.chdir(before)
}

/** Runs the program of a page until it has printed what the page says, then closes what the program opened. */
export async function runProgram(page: Page): Promise<void> {
  Object.assign(globalThis, { guideLog })
  const program = (await import(programOf(page))) as { readonly close?: () => Promise<void> }
  const isMissing = (): boolean =>
    page.prints.some(({ line, texts }) => printedAt(page, line).length < texts.length)
  for (const endMs = performance.now() + PRINTING_MS_MAX; isMissing() && performance.now() < endMs;)
    await new Promise((resolve) => setTimeout(resolve, 10))
  await program.close?.()
}

/** Time for which a program may still print after its last line. Only a failing program uses it up. */
const PRINTING_MS_MAX = 10_000
