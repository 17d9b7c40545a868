/** The build of msgpackr that generates no code at run time; it ships without types of its own. */
declare module 'msgpackr/index-no-eval' {
  export { Packr, RESET_BUFFER_MODE, Unpackr } from 'msgpackr'
}
